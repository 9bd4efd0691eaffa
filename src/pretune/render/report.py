"""Everything about a trained model on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pretune.checkpoints.atomic_io import atomic_text
from pretune.errors import RunError
from pretune.evaluation.examine import Examined
from pretune.evaluation.explain import Explained
from pretune.render.charts import not_writable, undrawable, write_pngs
from pretune.render.course import Course
from pretune.render.page import Code, Folded, Paragraph, Picture, Section, page
from pretune.render.report_examples import SCRIPT, ExampleTable
from pretune.render.report_explained import explained_section
from pretune.render.report_sections import (
    calibration_section,
    class_section,
    figures_section,
    length_section,
    mistake_section,
    score_section,
)


@dataclass(frozen=True)
class ReportFacts:
    """What a report is made of.

    Attributes:
        name: of the run.
        examined: all examples.
        recipe: as YAML; None where the model is no run of ours.
        course: of the training.
        explained: attributions of some of them, by their numbers.
        fitted: the examples that the temperature is fitted on; None: the same ones.
    """

    name: str
    examined: Examined
    recipe: str | None = None
    course: Course = field(default_factory=lambda: Course({}))
    explained: Mapping[int, Explained] = field(default_factory=dict)
    fitted: Examined | None = None


def report_sections(facts: ReportFacts) -> list[Section]:
    """What stands on the page; what there is nothing to say of is left out."""
    examined = facts.examined
    recipe = None if facts.recipe is None else Section("Recipe", [Code(facts.recipe)])
    found = [
        figures_section(examined),
        _course_section(facts.course),
        class_section(examined),
        score_section(examined),
        calibration_section(examined, facts.fitted),
        mistake_section(examined),
        length_section(examined),
        Section("Every example", [Paragraph(_LOSSES), ExampleTable(examined)]),
        explained_section(examined, facts.explained),
        recipe,
    ]
    return [section for section in found if section is not None]


_LOSSES = (
    "Those with the highest loss first: they are often wrong labels. A click on a heading sorts. "
    "Losses are means over the terms of an example, in nats (of scores: squared errors), without "
    "label smoothing, z-loss and weights."
)


def _course_section(course: Course) -> Section | None:
    if not course.curves:
        return None
    from pretune.render.report_charts import course_chart

    picture = Picture(course_chart(course), "figures over the updates", name="training")
    return Section("Training", [picture])


def font_note(facts: ReportFacts) -> str | None:
    """What to tell people where pictures cannot show all labels."""
    return undrawable(facts.examined.details.get("labels", []))


def check_writable(output: Path, png: Path | None, *, overwrite: bool) -> None:
    """See before the work whether what it leads to can be written.

    Raises:
        RunError: it cannot, or is there already.
    """
    if output.is_dir():
        raise RunError(f"{output}: is a folder", "Name a file: --output report.html")
    if output.exists() and not overwrite:
        raise RunError(f"{output}: is there already", "Add --overwrite, or name another --output.")
    if not output.resolve().parent.is_dir():
        raise RunError(f"{output}: there is no such folder", "Make it, or name another --output.")
    if png is not None:
        there = next(place for place in (png, *png.resolve().parents) if place.exists())
        if not there.is_dir():
            raise RunError(f"{there}: is a file", "Give the name of a folder: --png FOLDER")


def write_report(facts: ReportFacts, output: Path, png: Path | None = None) -> None:
    """Write the page, and its pictures into a folder.

    Raises:
        RunError: a file cannot be written.
    """
    sections = report_sections(facts)
    text = page(f"{facts.name}: report", sections, SCRIPT)
    if png is not None:
        parts = [part for section in sections for part in section.parts]
        parts = [part.part if isinstance(part, Folded) else part for part in parts]
        pictures = {part.name: part.figure for part in parts if isinstance(part, Picture)}
        write_pngs(pictures, png)
    try:
        atomic_text(output, text)
    except OSError as error:
        raise not_writable(output, "--output", error) from None
