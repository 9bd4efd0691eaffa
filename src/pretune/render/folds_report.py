"""The page of a cross-validation: the figures of its parts, and the labels that may be wrong."""

from __future__ import annotations

from pathlib import Path

from pretune.checkpoints.atomic_io import atomic_text
from pretune.data.columns import as_text
from pretune.errors import not_writable
from pretune.experiments.failed_runs import degenerate_runs
from pretune.experiments.out_of_fold import TABLE, OutOfFold
from pretune.render.grid import Grid
from pretune.render.page import PagePart, PageSection, Paragraph, page
from pretune.render.report import label_errors_section
from pretune.text.spoken_language import labelled, tr
from pretune.training.run_result import SeveralRuns

#: The file, in the folder of the runs.
PAGE = "folds.html"


def write_folds_report(output: Path, result: SeveralRuns, answers: OutOfFold) -> None:
    """Write the page, in the place of an earlier one.

    Raises:
        RunError: it cannot be written.
    """
    sections = [_figures_section(result, answers), _label_section(answers)]
    text = page(
        tr(f"{output.resolve().parent.name}: cross-validation"),
        [section for section in sections if section is not None],
    )
    try:
        atomic_text(output, text)
    except OSError as error:
        raise not_writable(output, "output=FOLDER", error) from None


def _figures_section(result: SeveralRuns, answers: OutOfFold) -> PageSection:
    """Show the figures of each part, their mean and spread, and those of all answers together."""
    names, failed = [*result.runs[0].metrics], degenerate_runs(result)
    rows = [
        (number, *(f"{run.metrics[name]:.4f}" for name in names))
        for number, run in zip(result.numbers, result.runs, strict=True)
    ]
    means = [(f"{mean:.4f}", f"{sd:.4f}") for mean, sd in result.summary().values()]
    footer = [(tr("mean"), *(m for m, _ in means)), ("± sd", *(s for _, s in means))]
    about = tr(
        f"{len(answers.records):,} records from {answers.records.origin}, in {len(result.runs)} "
        f"parts. Each part was answered by a model that learned from the others; {TABLE} has all "
        "answers."
    )
    parts: list[PagePart] = [Paragraph(about), Grid((tr("fold"), *names), rows, footer=footer)]
    parts += [
        Paragraph(labelled(tr(f"! fold {number}"), tr(why))) for number, why in failed.items()
    ]
    if figures := answers.figures():
        shown = [(name, f"{value:.4f}") for name, value in figures.items()]
        parts.append(Grid(("", tr("value")), shown, tr("All out-of-fold answers together")))
    return PageSection(tr("Figures"), parts)


def _label_section(answers: OutOfFold) -> PageSection | None:
    errors, records = answers.errors, answers.records
    if errors is None:
        return None
    if records.lines is not None:
        kind, places = "line", [*records.lines]
    else:
        kind, places = "row", [*(records.numbers or range(1, len(records) + 1))]
    names = [name for name in answers.task.shown if name in records.columns]
    texts = [
        " | ".join(as_text(records.rows[number].get(name)) or "" for name in names)
        for number in errors.suspects
    ]
    return label_errors_section(errors, answers.labels, kind, places, texts)
