"""The table of all examples in a report: its data, and a small script that sorts and filters it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from typing_extensions import override

from pretune.evaluation.examine import Examined
from pretune.render.escaping import for_html, shortened
from pretune.render.grid import SHORT
from pretune.render.page import PagePart
from pretune.tasks.grading import Mistake
from pretune.text.spoken_language import labelled, tr

#: Characters of all texts in a page, which a browser has to read at once. Each text gets an equal
#: share of them, but at most and at least so many.
ALL_TEXT, LONGEST_TEXT, SHORTEST_TEXT = 20_000_000, 2000, 200
#: Rows of the table that are shown at a time.
PAGE_ROWS = 50

#: The columns that are not of the data.
OWN_COLUMNS = (
    *("line", "row", "loss", "perplexity", "tokens"),
    *("truth", "answer", "confidence", "right", "mistakes"),
)
#: Sorts and filters the table. All text from the data is set as text, never as HTML.
SCRIPT = "\n" + files("pretune.render").joinpath("example_table.js").read_text(encoding="utf-8")


@dataclass(frozen=True)
class ExampleTable(PagePart):
    """A table of all examples, worst first, that `SCRIPT` sorts and filters in the browser."""

    examined: Examined

    @override
    def html(self) -> str:
        header, rows = example_rows(self.examined)
        # The last entry of each row is no column: the kinds of mistakes, to filter by.
        kinds = [sorted({tr(m.kind) for m in e.grade.mistakes}) for e in self.examined.examples]
        values = {
            "rows": [[*row, own] for row, own in zip(rows, kinds, strict=True)],
            "short": SHORT,
            "sort": header.index("loss") if "loss" in header else 0,
            "down": "loss" in header,
            "right": header.index("right") if "right" in header else -1,
            "size": PAGE_ROWS,
            "words": {
                "yes": tr("yes"),
                "no": tr("no"),
                "count": tr("{0} examples, page {1} of {2}"),
            },
        }
        data = json.dumps(
            values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), check_circular=False
        )
        # Unpaired surrogates are not UTF-8. No `<` is left that could end the script element.
        data = data.encode("utf-8", "replace").decode("utf-8")
        data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
        # The script finds its parts by their ids, and fills the empty table.
        names = _shown_columns(header, self.examined)
        buttons = "".join(
            f'<th scope="col"><button type="button">{for_html(name)}</button></th>'
            for name in names
        )
        return (
            f'<p class="tools"><label>{tr("Search")} <input id="filter" type="search"></label> '
            f'<label><input id="wrong" type="checkbox"> {tr("Mistakes only")}</label> '
            f'<label>{tr("Kind of mistake")} <select id="kind">'
            f'<option value="">{tr("all")}</option></select></label> '
            f'<span><button id="back" type="button">{tr("Previous")}</button> '
            f'<button id="on" type="button">{tr("Next")}</button> '
            '<span id="count"></span></span></p>\n'
            f'<div class="table"><table><thead><tr id="head">{buttons}</tr></thead>'
            '<tbody id="rows"></tbody></table></div>\n'
            f"<noscript><p>{tr('This table needs JavaScript; its script is part of this file.')}"
            "</p></noscript>\n"
            f'<script type="application/json" id="examples">{data}</script>'
        )


def mistake_text(mistake: Mistake) -> str:
    """A mistake in the language that is spoken; a detail that is a label stays as it is."""
    kind, detail = tr(mistake.kind), mistake.detail
    if not detail:
        return kind
    return labelled(kind, tr(detail) if " " in detail else detail)


def _shown_columns(header: Sequence[str], examined: Examined) -> list[str]:
    """The names of the columns in the language of the page; those of the data stay."""
    of_data = {name for number in range(len(examined.examples)) for name in examined.text(number)}
    return [tr(name) if name in OWN_COLUMNS and name not in of_data else name for name in header]


def example_rows(examined: Examined) -> tuple[list[str], list[list[Any]]]:
    """Tabulate the examples: names of columns, and a row of cells for each example.

    Empty columns are left out, and the mistakes if all are of one kind: truth and answer show it.
    """
    examples = examined.examples
    name_of_place, places = examined.places()
    columns: dict[str, list[Any]] = {name_of_place: places}
    if examined.has_losses:
        columns["loss"] = [_finite(example.mean_loss) for example in examples]
    if {"perplexity", "pseudo_perplexity"} & examined.metrics.keys():
        columns["perplexity"] = [_finite(math.exp(min(e.mean_loss, 700.0))) for e in examples]
    columns["tokens"] = [example.tokens for example in examples]
    # What is known of the answer: only the columns that any example fills.
    longest = max(SHORTEST_TEXT, min(LONGEST_TEXT, ALL_TEXT // max(len(examples), 1)))
    several = len({mistake.kind for e in examples for mistake in e.grade.mistakes}) > 1
    for name in ("truth", "answer", "confidence", "right", "mistakes"):
        values = [getattr(example.grade, name) for example in examples]
        if name == "mistakes":
            values = ["; ".join(map(mistake_text, value)) for value in values]
        if name == "confidence":
            values = [None if value is None else _finite(value, 4) for value in values]
        if any(value not in ("", None) for value in values) and (several or name != "mistakes"):
            columns[name] = [shortened(v, longest) if isinstance(v, str) else v for v in values]
    # The record itself; a column of the data may be called as one of ours.
    shown = [examined.text(number) for number in range(len(examples))]
    for name in dict.fromkeys(name for own in shown for name in own):
        title = name if name not in columns else f"{name} (data)"
        columns[title] = [shortened(own.get(name, ""), longest) for own in shown]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _finite(value: float, digits: int = 6) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
