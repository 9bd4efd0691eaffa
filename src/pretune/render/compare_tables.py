"""What `pretune compare` shows in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.evaluation.compare import Compared, Difference, Interval
from pretune.tasks.base import lower_is_better

#: Characters of a text that are shown.
_SHOWN = 160


def compare_tables(found: Compared, examples: int) -> RenderableType:
    """Figures with intervals, differences with their probabilities, and some examples of each."""
    first, *others = found.names
    parts: list[RenderableType] = [_figures(found)]
    if found.note is not None:
        parts.append(Text(found.note))
    for number, name in enumerate(others, start=1):
        parts += [Text(), _differences(found, number)]
        better, worse = found.apart(number)
        if found.judged:
            parts.append(
                Text(
                    f"only {first} is right: {len(better):,}; only {name} is right: {len(worse):,}"
                )
            )
        for title, which in ((first, better), (name, worse)):
            word = "Only {} is right" if found.judged else "{} foretells these best"
            if examples and which:
                parts += [Text(), _examples(found, number, word.format(title), which[:examples])]
    return Group(*parts)


def _figures(found: Compared) -> Table:
    title = (
        f"{len(found.examined[0].examples):,} examples, {found.level:.0%} intervals of "
        f"{found.resamples:,} resamples"
    )
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("metric")
    for name in found.names:
        table.add_column(Text(name, overflow="fold"), justify="right")
    for metric in found.figures[0]:
        table.add_row(Text(metric), *(Text(_interval(own[metric])) for own in found.figures))
    return table


def _differences(found: Compared, number: int) -> Table:
    title = f"{found.names[number]} minus {found.names[0]}"
    table = Table(title=Text(title), title_justify="left", pad_edge=False)
    table.add_column("metric")
    for name in ("difference", "p"):
        table.add_column(name, justify="right")
    table.add_column("")
    for metric, one in found.differences[number - 1].items():
        verdict = _verdict(metric, one, 1 - found.level)
        style = {"better": "green", "worse": "red"}.get(verdict, "")
        table.add_row(Text(metric), _interval(one, "+"), f"{one.p:.4f}", Text(verdict, style))
    return table


def _verdict(metric: str, one: Difference, most: float) -> str:
    if one.value == 0:
        return "the same"
    if one.p > most:
        return "may be chance"
    return "better" if (one.value < 0) == lower_is_better(metric) else "worse"


def _interval(one: Interval, sign: str = "") -> str:
    return f"{one.value:{sign}.4f}  ({one.low:{sign}.4f} to {one.high:{sign}.4f})"


def _examples(found: Compared, number: int, title: str, which: list[int]) -> Table:
    first, other = found.examined[0], found.examined[number]
    kind, places = first.places()
    table = Table(title=Text(title), title_justify="left", pad_edge=False, show_lines=True)
    table.add_column(kind, justify="right")
    columns = ["text", "truth", found.names[0], found.names[number]]
    if not any(first.examples[i].grade.truth for i in which):
        columns.remove("truth")
    for name in columns:
        table.add_column(Text(name, overflow="fold"), overflow="fold")
    for i in which:
        text = " | ".join(first.text(i).values())
        cells = [text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"]
        if "truth" in columns:
            cells.append(first.examples[i].grade.truth)
        for one in (first, other):
            answer, loss = one.examples[i].grade.answer, one.examples[i].mean_loss
            cells.append(f"{answer} (loss {loss:.2f})" if answer else f"loss {loss:.4f}")
        table.add_row(str(places[i]), *map(Text, cells))
    return table
