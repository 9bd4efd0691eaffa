"""The examples of a report: data in the page, and a small script that sorts and filters them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from pretune.infer.examine import Examined
from pretune.report.page import escaped

#: Characters of a text that are shown; a page of 10,000 books would not open.
LONGEST_TEXT = 2000
#: Rows that are in the page at a time.
PAGE_ROWS = 50

#: Everything from the data is set as text, never as HTML.
SCRIPT = """
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("examples").textContent);
  const body = document.getElementById("rows"), count = document.getElementById("count");
  const filter = document.getElementById("filter"), wrong = document.getElementById("wrong");
  const state = { column: data.sort, down: true, page: 0 };
  let shown = [];
  const compare = (a, b) => {
    const x = a[state.column], y = b[state.column];
    if (x === y) return 0;
    if (x === null) return 1;
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (state.down ? -1 : 1);
  };
  const choose = () => {
    const word = filter.value.toLowerCase();
    shown = data.rows.filter(row => (!wrong.checked || row[data.right] === false) &&
      (!word || row.some(cell => typeof cell === "string" && cell.toLowerCase().includes(word))));
    shown.sort(compare);
    state.page = 0;
    draw();
  };
  const cell = value => value === null ? "" : value === true ? "yes" : value === false ? "no" :
    typeof value === "number" && !Number.isInteger(value) ? value.toFixed(4) : String(value);
  const draw = () => {
    body.replaceChildren(...shown.slice(state.page * data.size, (state.page + 1) * data.size)
      .map(row => {
        const line = document.createElement("tr");
        for (const value of row) {
          const field = document.createElement("td"), text = document.createElement("bdi");
          if (typeof value === "number") field.className = "number";
          text.textContent = cell(value);
          field.append(text);
          line.append(field);
        }
        return line;
      }));
    const pages = Math.max(1, Math.ceil(shown.length / data.size));
    count.textContent = `${shown.length} examples, page ${state.page + 1} of ${pages}`;
    document.getElementById("back").disabled = state.page === 0;
    document.getElementById("on").disabled = state.page + 1 >= pages;
    document.querySelectorAll("#head th").forEach((head, i) => head.setAttribute("aria-sort",
      i !== state.column ? "none" : state.down ? "descending" : "ascending"));
  };
  document.querySelectorAll("#head button").forEach((button, i) => button.onclick = () => {
    state.down = state.column === i ? !state.down : true;
    state.column = i;
    choose();
  });
  document.getElementById("back").onclick = () => { state.page -= 1; draw(); };
  document.getElementById("on").onclick = () => { state.page += 1; draw(); };
  filter.oninput = wrong.onchange = choose;
  choose();
})();
"""


@dataclass(frozen=True)
class ExampleTable:
    """All examples of some data, worst first; sorted and filtered in the browser by `SCRIPT`."""

    examined: Examined

    def html(self) -> str:
        """As HTML: an empty table and its rows as JSON, in which no `<` can end the script."""
        header, rows = example_rows(self.examined)
        right = header.index("right") if "right" in header else -1
        values = {"rows": rows, "sort": header.index("loss"), "right": right, "size": PAGE_ROWS}
        text = json.dumps(values, ensure_ascii=True, allow_nan=False)
        safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        buttons = "".join(
            f'<th scope="col"><button type="button">{escaped(name)}</button></th>'
            for name in header
        )
        hidden = "" if right >= 0 else " hidden"
        return (
            '<p><label>contains <input id="filter" type="search"></label> '
            f'<label{hidden}><input id="wrong" type="checkbox"> only mistakes</label> '
            '<button id="back" type="button">back</button> '
            '<button id="on" type="button">on</button> <span id="count"></span></p>\n'
            f'<div class="table"><table><thead><tr id="head">{buttons}</tr></thead>'
            '<tbody id="rows"></tbody></table></div>\n'
            f'<script type="application/json" id="examples">{safe}</script>'
        )


def example_rows(examined: Examined) -> tuple[list[str], list[list[Any]]]:
    """Names of columns, and the cells of each example; columns that nobody filled are left out."""
    lm = "perplexity" in examined.metrics or "pseudo_perplexity" in examined.metrics
    columns: dict[str, list[Any]] = {
        "number": [example.record + 1 for example in examined.examples],
        "loss": [_finite(example.mean_loss) for example in examined.examples],
    }
    if lm:
        columns["perplexity"] = [
            _finite(math.exp(min(example.mean_loss, 700.0))) for example in examined.examples
        ]
    columns["tokens"] = [example.tokens for example in examined.examples]
    for name in ("truth", "answer", "confidence", "right", "mistakes"):
        values = [getattr(example.grade, name) for example in examined.examples]
        if name == "mistakes":
            values = ["; ".join(map(str, value)) for value in values]
        if any(value not in ("", None) for value in values):
            columns[name] = values
    shown = [examined.text(number) for number in range(len(examined.examples))]
    for name in dict.fromkeys(name for own in shown for name in own):
        texts = [own.get(name, "") for own in shown]
        columns[name] = [
            text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…" for text in texts
        ]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
