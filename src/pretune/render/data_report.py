"""A description of data files as tables, charts and one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from pretune.inspection.describe import ALL, Description, Facts, Leak
from pretune.inspection.describe_counts import Lengths
from pretune.render.charts import Box, bar_chart, box_chart, write_pngs
from pretune.render.escaping import one_line
from pretune.render.grid import Grid
from pretune.render.page import PagePart, PageSection, Picture, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Labels shown in a table or a chart; further ones are only counted.
MAX_LABELS = 20
_BOXES = "a text (line: median; box: middle half; whiskers: 5% and 95%)"


def description_view(description: Description) -> Group:
    """Lay out a description for the terminal."""
    parts: list[RenderableType] = []
    for facts in description.files:
        for grid in _grids(facts):
            parts += [grid.terminal(), Text()]
    if description.leaks:
        parts.append(_leaks(description.leaks).terminal())
    return Group(*parts)


def description_page(description: Description, title: str = "Data") -> str:
    """Write a description as one self-contained HTML page."""
    sections = []
    for facts in description.files:
        parts: list[PagePart] = list(_grids(facts))
        parts += [Picture(figure, what, what) for _, what, figure in charts(facts)]
        sections.append(PageSection(facts.origin, parts))
    if description.leaks:
        sections.append(PageSection("Texts that files share", [_leaks(description.leaks)]))
    return page(title, sections)


def write_charts(description: Description, folder: Path) -> list[Path]:
    """Write the charts of a description as PNG files; raises RunError if that fails."""
    figures = {
        f"{number}-{Path(facts.origin).stem}-{name}".replace(":", "-"): figure
        for number, facts in enumerate(description.files, start=1)
        for name, _, figure in charts(facts)
    }
    return write_pngs(figures, folder)


def charts(facts: Facts) -> Iterator[tuple[str, str, Figure]]:
    """Draw the charts of one file; yield for each a short name, a caption and the figure."""
    if facts.labels:
        names = [name for name, _ in facts.labels.most_common(MAX_LABELS)]
        counts = {"rows": [float(facts.labels[name]) for name in names]}
        yield "labels", "How often each label occurs", bar_chart(names, counts, "rows")
    for unit, lengths in (("words", facts.words), ("tokens", facts.tokens)):
        if not lengths:
            continue
        names = _group_names(lengths)
        means = {"mean": [round(lengths[name].mean, 1) for name in names]}
        yield f"mean_{unit}", f"Mean {unit} by label", bar_chart(names, means, f"mean {unit}")
        boxes = {"": [_box(lengths[name]) for name in names]}
        yield unit, f"{unit.capitalize()} by label", box_chart(names, boxes, f"{unit} {_BOXES}")


def _box(lengths: Lengths) -> Box:
    return Box(*(float(lengths.quantile(share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)))


def _group_names(lengths: dict[str, Lengths]) -> list[str]:
    """Return `ALL`, then the labels that are shown, most frequent first."""
    labels = sorted((name for name in lengths if name != ALL), key=lambda n: -lengths[n].rows)
    return [ALL, *labels[:MAX_LABELS]]


def _grids(facts: Facts) -> Iterator[Grid]:
    """Yield the tables of one file, without those that would be empty."""
    yield _overview(facts)
    if facts.labels:
        yield _labels(facts)
    if facts.words:
        yield _lengths(facts.words, "words")
        yield _extremes(facts)
    # Tokens are counted only with a tokenizer.
    if facts.tokens:
        yield _lengths(facts.tokens, "tokens")
        rows = [(f"{limit}", f"{share:.2%}") for limit, share in facts.truncated().items()]
        yield Grid(("max_length", "texts cut"), rows, "cut by max_length", numbers=(0, 1))
    if facts.unknown is not None:
        yield _unknown_tokens(facts)
    yield _problems(facts)
    rows = [(name, f"{share:.2%}") for name, share in facts.scripts.items()]
    yield Grid(("script", "share of the letters"), rows, "scripts")


def _overview(facts: Facts) -> Grid:
    """Tabulate the columns: types of values, missing values, role."""
    rows = []
    for name, types in facts.columns.items():
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in types.items() if kind != "missing")
        role = "text" if name in facts.text else "label" if name == facts.label else ""
        rows.append((name, kinds, f"{types['missing']:,}", role))
    header = ("column", "values", "missing", "taken for")
    return Grid(header, rows, f"{facts.origin}: {facts.rows:,} rows", numbers=(2,))


def _labels(facts: Facts) -> Grid:
    total, count = max(facts.labels.total(), 1), len(facts.labels)
    shown = facts.labels.most_common(MAX_LABELS)
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in shown]
    more = f", the {MAX_LABELS} most frequent" if count > len(rows) else ""
    return Grid(("label", "rows", "share"), rows, f"{count:,} labels{more}")


def _lengths(lengths: dict[str, Lengths], unit: str) -> Grid:
    """Tabulate the lengths of all texts together and by label."""
    rows = []
    for name in _group_names(lengths):
        own = lengths[name]
        quantiles = [f"{own.quantile(share):,}" for share in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)]
        rows.append((name, f"{own.rows:,}", f"{own.mean:,.1f}", *quantiles))
    header = (f"{unit} a text", "texts", "mean", "least", "25%", "median", "75%", "95%", "most")
    return Grid(header, rows, f"{unit} a text")


def _extremes(facts: Facts) -> Grid:
    rows = [
        (kind, f"{item.words:,}", item.where, one_line(item.text))
        for kind, items in (("longest", facts.longest), ("shortest", facts.shortest))
        for item in items
    ]
    header = ("", "words", "where", "text")
    return Grid(header, rows, "longest and shortest texts", numbers=(1,))


def _problems(facts: Facts) -> Grid:
    """Tabulate empty and repeated texts, and labels that are spelled in several ways."""
    repeats = facts.repeats
    share = repeats.conflicts / max(repeats.groups, 1)
    rows = [
        ("rows without text", f"{facts.empty:,}", "; ".join(facts.empty_places)),
        ("rows that repeat an earlier text", f"{repeats.rows:,}", "; ".join(repeats.examples)),
        ("texts that occur more than once", f"{repeats.groups:,}", ""),
        ("  with different labels", f"{repeats.conflicts:,}", f"{share:.1%} of these texts"),
    ]
    rows += [("labels", "", one_line(remark)) for remark in facts.label_remarks]
    return Grid(("what to look at", "", "where"), rows, numbers=(1,))


def _unknown_tokens(facts: Facts) -> Grid:
    """Tabulate the characters and words that become [UNK]; `facts.unknown` must be there."""
    unknown = facts.unknown
    assert unknown is not None  # noqa: S101 - for the type checker
    share = unknown.lost / max(unknown.tokens, 1)
    rows = []
    for piece, place in facts.unknown_places.items():
        codes = " ".join(f"U+{ord(character):04X}" for character in piece[:4])
        rows.append((one_line(piece), codes, f"{unknown.pieces[piece]:,}", place))
    caption = f"[UNK]: {unknown.lost:,} of {unknown.tokens:,} tokens ({share:.3%})"
    return Grid(("becomes [UNK]", "code", "times", "first in"), rows, caption, numbers=(2,))


def _leaks(leaks: Sequence[Leak]) -> Grid:
    """Tabulate the texts that files share."""
    rows = []
    for leak in leaks:
        near = "-" if leak.near is None else f"{leak.near:,}"
        counts = (f"{leak.rows:,}", f"{leak.conflicts:,}", near)
        rows.append((leak.target, leak.source, *counts, "; ".join(leak.examples)))
    header = ("rows of", "also in", "same text", "other label", "nearly the same", "where")
    return Grid(header, rows, "texts that files share", numbers=(2, 3, 4))
