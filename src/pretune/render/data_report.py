"""A description of data files as tables, charts and one HTML page."""

from __future__ import annotations

import re
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
from pretune.text.spoken_language import tr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Labels shown in a table or a chart; further ones are only counted.
MAX_LABELS = 20
#: What stands between two places with the same text, or with nearly the same.
_EQUALS = re.compile(r" ([=~]) ")
_BOXES_OF_WORDS = "words per text (line: median; box: middle half; whiskers: 5% and 95%)"
_BOXES_OF_TOKENS = "tokens per text (line: median; box: middle half; whiskers: 5% and 95%)"


def description_view(description: Description) -> Group:
    """Lay out a description for the terminal."""
    parts: list[RenderableType] = []
    for facts in description.files:
        for grid in _grids(facts, remarks=False):
            parts += [grid.terminal(), Text()]
        # Remarks hold commands to paste: not in a cell, whose width would break them.
        remarks = [f"{tr('labels')}: {one_line(tr(remark))}" for remark in facts.label_remarks]
        parts += [Text(remark, no_wrap=True, overflow="ignore") for remark in remarks]
        parts += [Text()] if remarks else []
    return Group(*parts, *([_leaks(description.leaks).terminal()] if description.leaks else []))


def description_grids(description: Description) -> list[Grid]:
    """Tabulate all files, then the texts that they share, if they share any."""
    grids = [grid for facts in description.files for grid in _grids(facts)]
    return [*grids, *([_leaks(description.leaks)] if description.leaks else [])]


def description_page(description: Description, title: str | None = None) -> str:
    """Write a description as one self-contained HTML page."""
    sections = []
    for facts in description.files:
        parts: list[PagePart] = list(_grids(facts))
        parts += [Picture(figure, what, what) for _, what, figure in charts(facts)]
        sections.append(PageSection(facts.origin, parts))
    if description.leaks:
        sections.append(PageSection(tr("Texts that files share"), [_leaks(description.leaks)]))
    return page(title or tr("Data"), sections)


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
        yield "labels", tr("How often each label occurs"), bar_chart(names, counts, "rows")
    for unit, lengths in (("words", facts.words), ("tokens", facts.tokens)):
        if not lengths:
            continue
        names = _group_names(lengths)
        shown = [tr(name) if name == ALL else name for name in names]
        words = unit == "words"
        means = {"mean": [round(lengths[name].mean, 1) for name in names]}
        title = tr("Mean words by label") if words else tr("Mean tokens by label")
        axis = "mean words per text" if words else "mean tokens per text"
        yield f"mean_{unit}", title, bar_chart(shown, means, axis)
        boxes = {"": [_box(lengths[name]) for name in names]}
        title = tr("Words by label") if words else tr("Tokens by label")
        axis = _BOXES_OF_WORDS if words else _BOXES_OF_TOKENS
        yield unit, title, box_chart(shown, boxes, axis)


def _box(lengths: Lengths) -> Box:
    return Box(*(float(lengths.quantile(share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)))


def _group_names(lengths: dict[str, Lengths]) -> list[str]:
    """Return `ALL`, then the labels that are shown, most frequent first."""
    labels = sorted((name for name in lengths if name != ALL), key=lambda n: -lengths[n].rows)
    return [ALL, *labels[:MAX_LABELS]]


def _grids(facts: Facts, *, remarks: bool = True) -> Iterator[Grid]:
    """Yield the tables of one file, without those that would be empty, or without remarks."""
    yield _overview(facts)
    if facts.labels:
        yield _labels(facts)
    if facts.words:
        yield _lengths(facts.words, tr("words per text"))
        yield _extremes(facts)
    # Tokens are counted only with a tokenizer.
    if facts.tokens:
        yield _lengths(facts.tokens, tr("tokens per text"))
        rows = [(f"{limit}", f"{share:.2%}") for limit, share in facts.truncated().items()]
        header = ("max_length", tr("texts cut"))
        yield Grid(header, rows, tr("cut by max_length"), numbers=(0, 1))
    if facts.unknown is not None:
        yield _unknown_tokens(facts)
    yield _problems(facts, facts.label_remarks if remarks else ())
    rows = [(name, f"{share:.2%}") for name, share in facts.scripts.items()]
    yield Grid((tr("script"), tr("share of the letters")), rows, tr("scripts"))


def _overview(facts: Facts) -> Grid:
    """Tabulate the columns: types of values, missing values, role."""
    rows = []
    for name, types in facts.columns.items():
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in types.items() if kind != "missing")
        role = tr("text") if name in facts.text else tr("label") if name == facts.label else ""
        rows.append((name, kinds, f"{types['missing']:,}", role))
    header = (tr("column"), tr("values"), tr("missing"), tr("taken for"))
    return Grid(header, rows, tr(f"{facts.origin}: {facts.rows:,} rows"), numbers=(2,))


def _labels(facts: Facts) -> Grid:
    total, count = max(facts.labels.total(), 1), len(facts.labels)
    shown = facts.labels.most_common(MAX_LABELS)
    rows = [(name, f"{n:,}", f"{n / total:.1%}") for name, n in shown]
    caption = tr(f"{count:,} labels")
    if count > len(rows):
        caption = tr(f"{count:,} labels, the {MAX_LABELS} most frequent")
    return Grid((tr("label"), tr("rows"), tr("share")), rows, caption)


def _lengths(lengths: dict[str, Lengths], unit: str) -> Grid:
    """Tabulate the lengths of all texts together and by label."""
    rows = []
    for name in _group_names(lengths):
        own = lengths[name]
        quantiles = [f"{own.quantile(share):,}" for share in (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)]
        shown = tr(name) if name == ALL else name
        rows.append((shown, f"{own.rows:,}", f"{own.mean:,.1f}", *quantiles))
    names = (tr("texts"), tr("mean"), tr("least"), "25%", tr("median"), "75%", "95%", tr("most"))
    return Grid((unit, *names), rows, unit)


def _extremes(facts: Facts) -> Grid:
    rows = [
        (kind, f"{item.words:,}", tr(item.where), one_line(item.text))
        for kind, items in ((tr("longest"), facts.longest), (tr("shortest"), facts.shortest))
        for item in items
    ]
    header = ("", tr("words"), tr("where"), tr("text"))
    return Grid(header, rows, tr("longest and shortest texts"), numbers=(1,))


def _problems(facts: Facts, remarks: Sequence[str]) -> Grid:
    """Tabulate what is missing or repeated, and remarks on the labels."""
    repeats = facts.repeats
    share = repeats.conflicts / max(repeats.groups, 1)
    places = [one_line(tr(place)) for place in facts.unreadable_places[:1]]
    unreadable = (tr("lines that are no rows"), f"{facts.unreadable:,}", "".join(places))
    places = [tr(place) for place in facts.unlabelled_places]
    unlabelled = (tr("rows without a label"), f"{facts.unlabelled:,}", "; ".join(places))
    rows = [
        *([unreadable] if facts.unreadable else []),
        (tr("rows without text"), f"{facts.empty:,}", "; ".join(map(tr, facts.empty_places))),
        *([unlabelled] if facts.label is not None else []),
        (
            tr("rows that repeat an earlier text"),
            f"{repeats.rows:,}",
            "; ".join(map(tr, repeats.examples)),
        ),
        (tr("texts that occur more than once"), f"{repeats.groups:,}", ""),
        (
            tr("  with different labels"),
            f"{repeats.conflicts:,}",
            tr(f"{share:.1%} of these texts"),
        ),
    ]
    rows += [(tr("labels"), "", one_line(tr(remark))) for remark in remarks]
    return Grid((tr("what to look at"), "", tr("where")), rows, numbers=(1,))


def _unknown_tokens(facts: Facts) -> Grid:
    """Tabulate the characters and words that become [UNK]; `facts.unknown` must be there."""
    unknown = facts.unknown
    assert unknown is not None  # noqa: S101 - for the type checker
    share = unknown.lost / max(unknown.tokens, 1)
    rows = []
    for piece, place in facts.unknown_places.items():
        codes = " ".join(f"U+{ord(character):04X}" for character in piece[:4])
        rows.append((one_line(piece), codes, f"{unknown.pieces[piece]:,}", tr(place)))
    caption = tr(f"[UNK]: {unknown.lost:,} of {unknown.tokens:,} tokens ({share:.3%})")
    header = (tr("becomes [UNK]"), tr("code point"), tr("times"), tr("first in"))
    return Grid(header, rows, caption, numbers=(2,))


def _told(places: str) -> str:
    """Say which lines have the same text (`line 3 = line 5`), or nearly the same (`~`)."""
    return " ".join(part if part in "=~" else tr(part) for part in _EQUALS.split(places))


def _leaks(leaks: Sequence[Leak]) -> Grid:
    """Tabulate the texts that files share."""
    rows = []
    for leak in leaks:
        near = "-" if leak.near is None else f"{leak.near:,}"
        counts = (f"{leak.rows:,}", f"{leak.conflicts:,}", near)
        rows.append((leak.target, leak.source, *counts, "; ".join(map(_told, leak.examples))))
    names = (tr("same text"), tr("other label"), tr("nearly the same"), tr("where"))
    header = (tr("rows of"), tr("also in"), *names)
    return Grid(header, rows, tr("texts that files share"), numbers=(2, 3, 4))
