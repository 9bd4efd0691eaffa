"""A description as charts and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pretune.inspection.describe import Description, Facts
from pretune.render.charts import bar_chart, box_chart, write_pngs
from pretune.render.describe_views import MOST, grids, group_names, leak_grid
from pretune.render.page import Part, Picture, Section, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BOXES = "a text (line: median; box: middle half; whiskers: 5% and 95%)"


def charts(facts: Facts) -> Iterator[tuple[str, str, Figure]]:
    """A short name, what it shows, and the figure."""
    if facts.labels:
        names = [name for name, _ in facts.labels.most_common(MOST)]
        counts = {"rows": [float(facts.labels[name]) for name in names]}
        yield "labels", "How often each label occurs", bar_chart(names, counts, "rows")
    for unit, lengths in (("words", facts.words), ("tokens", facts.tokens)):
        if not lengths:
            continue
        names = group_names(lengths)
        means = {"mean": [round(lengths[name].mean, 1) for name in names]}
        yield f"mean_{unit}", f"Mean {unit} by label", bar_chart(names, means, f"mean {unit}")
        boxes = {"": [lengths[name].box() for name in names]}
        yield unit, f"{unit.capitalize()} by label", box_chart(names, boxes, f"{unit} {_BOXES}")


def description_page(description: Description, title: str = "Data") -> str:
    """One self-contained HTML file."""
    sections = []
    for facts in description.files:
        parts: list[Part] = list(grids(facts))
        parts += [Picture(figure, what, what) for _, what, figure in charts(facts)]
        sections.append(Section(facts.origin, parts))
    if description.leaks:
        sections.append(Section("Texts that files share", [leak_grid(description.leaks)]))
    return page(title, sections)


def write_charts(description: Description, folder: Path) -> list[Path]:
    """Write all charts as PNG files into a folder, which is made.

    Raises:
        RunError: a file cannot be written.
    """
    figures = {
        f"{number}-{Path(facts.origin).stem}-{name}".replace(":", "-"): figure
        for number, facts in enumerate(description.files, start=1)
        for name, _, figure in charts(facts)
    }
    return write_pngs(figures, folder)
