"""A description as tables: once, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.inspection.describe import ALL, Description, Facts, Leak
from pretune.inspection.describe_counts import Lengths
from pretune.render.charts import undrawable
from pretune.render.markdown import one_line
from pretune.render.page import Grid

#: Rows of a table of labels or characters; the rest is counted.
MOST = 20


def overview(facts: Facts) -> Grid:
    """Rows, columns and what is missing."""
    rows = []
    for name, types in facts.columns.items():
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in types.items() if kind != "missing")
        rows.append((name, kinds, f"{types['missing']:,}", _role(facts, name)))
    header = ("column", "values", "missing", "taken for")
    return Grid(header, rows, f"{facts.origin}: {facts.rows:,} rows", [2])


def _role(facts: Facts, name: str) -> str:
    return "text" if name in facts.text else "label" if name == facts.label else ""


def label_grid(facts: Facts) -> Grid:
    """How often each label occurs, most frequent first."""
    total = max(facts.labels.total(), 1)
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in facts.labels.most_common(MOST)]
    more = len(facts.labels) - len(rows)
    caption = f"{len(facts.labels):,} labels" + (f", the {MOST} most frequent" if more else "")
    return Grid(("label", "rows", "share"), rows, caption, [1, 2])


def length_grid(lengths: dict[str, Lengths], unit: str) -> Grid:
    """Lengths of all rows, and by label."""
    rows = []
    for name in group_names(lengths):
        one = lengths[name]
        figures = [f"{one.quantile(share):,}" for share in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)]
        rows.append((name, f"{one.rows:,}", f"{one.mean:,.1f}", *figures))
    header = (f"{unit} a text", "texts", "mean", "least", "25%", "median", "75%", "95%", "most")
    return Grid(header, rows, f"{unit} a text", range(1, 9))


def group_names(lengths: dict[str, Lengths]) -> list[str]:
    """`ALL`, then the labels, most frequent first, as many as are shown."""
    labels = sorted((name for name in lengths if name != ALL), key=lambda n: -lengths[n].rows)
    return [ALL, *labels[:MOST]]


def truncation_grid(facts: Facts) -> Grid:
    """What each `max_length` would cut."""
    rows = [(f"{limit}", f"{share:.2%}") for limit, share in facts.truncated().items()]
    return Grid(("max_length", "texts cut"), rows, "cut by max_length", [0, 1])


def extreme_grid(facts: Facts) -> Grid:
    """The longest and the shortest texts."""
    rows = [
        (kind, f"{item.words:,}", item.where, one_line(item.text))
        for kind, items in (("longest", facts.longest), ("shortest", facts.shortest))
        for item in items
    ]
    return Grid(("", "words", "where", "text"), rows, "longest and shortest texts", [1])


def trouble_grid(facts: Facts) -> Grid:
    """Empty and repeated texts."""
    repeats = facts.repeats
    share = repeats.conflicts / max(repeats.groups, 1)
    rows = [
        ("rows without text", f"{facts.empty:,}", "; ".join(facts.empty_places)),
        ("rows that repeat an earlier text", f"{repeats.rows:,}", "; ".join(repeats.examples)),
        ("texts that are there more than once", f"{repeats.groups:,}", ""),
        ("  with different labels", f"{repeats.conflicts:,}", f"{share:.1%} of these texts"),
    ]
    return Grid(("what to look at", "", "where"), rows, "", [1])


def script_grid(facts: Facts) -> Grid:
    """Shares of scripts."""
    rows = [(name, f"{share:.2%}") for name, share in facts.scripts.items()]
    return Grid(("script", "share of the letters"), rows, "scripts", [1])


def unknown_grid(facts: Facts) -> Grid:
    """What becomes [UNK]; `facts.unknown` must be there."""
    unknown = facts.unknown
    assert unknown is not None  # noqa: S101 - for the type checker
    share = unknown.lost / max(unknown.tokens, 1)
    rows = [
        (one_line(piece), _codes(piece), f"{unknown.pieces[piece]:,}", place)
        for piece, place in facts.unknown_places.items()
    ]
    caption = f"[UNK]: {unknown.lost:,} of {unknown.tokens:,} tokens ({share:.3%})"
    return Grid(("becomes [UNK]", "code", "times", "first in"), rows, caption, [2])


def _codes(piece: str) -> str:
    return " ".join(f"U+{ord(character):04X}" for character in piece[:4])


def leak_grid(leaks: list[Leak]) -> Grid:
    """What files share."""
    rows = []
    for leak in leaks:
        near = "-" if leak.near is None else f"{leak.near:,}"
        counts = (f"{leak.rows:,}", f"{leak.conflicts:,}", near)
        rows.append((leak.target, leak.source, *counts, "; ".join(leak.examples)))
    header = ("rows of", "also in", "same text", "other label", "nearly the same", "where")
    return Grid(header, rows, "texts that files share", [2, 3, 4])


def grids(facts: Facts) -> Iterator[Grid]:
    """All tables of one file, without those that would be empty."""
    yield overview(facts)
    if facts.labels:
        yield label_grid(facts)
    if facts.words:
        yield length_grid(facts.words, "words")
        yield extreme_grid(facts)
    if facts.tokens:
        yield length_grid(facts.tokens, "tokens")
        yield truncation_grid(facts)
    if facts.unknown is not None:
        yield unknown_grid(facts)
    yield trouble_grid(facts)
    yield script_grid(facts)


def rich_table(grid: Grid) -> Table:
    """A table for the terminal."""
    table = Table(title=Text(grid.caption, "bold"), title_justify="left", pad_edge=False)
    for i, name in enumerate(grid.header):
        table.add_column(Text(name), justify="right" if i in grid.numbers else "left")
    for row in grid.rows:
        table.add_row(*(Text(str(cell), overflow="fold") for cell in row))
    return table


def description_tables(description: Description) -> Group:
    """All of it for the terminal."""
    parts: list[RenderableType] = []
    for facts in description.files:
        for grid in grids(facts):
            parts += [rich_table(grid), Text()]
    if description.leaks:
        parts.append(rich_table(leak_grid(description.leaks)))
    return Group(*parts)


def font_warning(description: Description) -> str | None:
    """What to say where charts cannot show all labels."""
    return undrawable([name for facts in description.files for name in facts.labels])
