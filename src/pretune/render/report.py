"""Report on a trained model: one HTML page with its training, its mistakes and every example."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from typing_extensions import override

from pretune.checkpoints.atomic_io import atomic_text
from pretune.data.arrays import Array
from pretune.errors import RunError, not_writable
from pretune.evaluation.calibration import (
    LOG_TEMPERATURE_LIMIT,
    Reliability,
    at_temperature,
    fit_temperature,
    nll,
    reliability,
    whole_distributions,
)
from pretune.evaluation.examine import Examined, Example
from pretune.evaluation.explain import Explained
from pretune.experiments.history import MetricHistory
from pretune.render.attention_maps import attention_chart
from pretune.render.charts import bar_chart, write_pngs
from pretune.render.escaping import for_html, shortened
from pretune.render.example_table import SCRIPT, ExampleTable
from pretune.render.grid import Grid
from pretune.render.page import Folded, PagePart, PageSection, Paragraph, Picture, page
from pretune.render.report_charts import (
    confusion_chart,
    frontier_chart,
    history_chart,
    reliability_chart,
    scatter_chart,
)
from pretune.render.result_views import sheet_summary
from pretune.tasks.base import ReadsStream
from pretune.tasks.grading import Decision, Mistake
from pretune.training.sample_sheet import SheetRow, score_names

#: Rows of the tables of mistakes, and characters of each text in them.
MISTAKE_ROWS, MISTAKE_LENGTH = 25, 300
#: Groups of examples by length.
LENGTH_GROUPS = 6
#: What replies are rated by, drawn against how far the model is from its reference.
GAINED = ("reward", "judge", "win_rate")
#: Prompts of the sheet of replies on a page, and characters of each text in it.
SHEET_ROWS, SHEET_LENGTH = 200, 1000
#: A confusion matrix of more classes cannot be read.
MAX_CONFUSION_CLASSES = 60
#: Shown in the place of no entities, or no labels.
NOTHING = "(none)"


@dataclass(frozen=True)
class ReportFacts:
    """Everything that a report is made of."""

    name: str
    examined: Examined
    recipe: str | None = None  # as YAML; None for a model that comes from no run
    history: MetricHistory = field(default_factory=MetricHistory)
    explained: Mapping[int, Explained] = field(default_factory=dict)  # by number of the example
    sheet: Sequence[SheetRow] = ()  # replies before and after training
    fitted: Examined | None = None  # examples to fit the temperature on; None: `examined` itself


def check_writable(output: Path, png: Path | None, *, overwrite: bool) -> None:
    """Check before the work starts that its results can be written; raises RunError if not."""
    if output.is_dir():
        raise RunError(f"{output}: is a folder", "Name a file: --output report.html")
    if output.exists() and not overwrite:
        raise RunError(f"{output}: exists already", "Add --overwrite, or name another --output.")
    if not output.resolve().parent.is_dir():
        raise RunError(f"{output}: no such folder", "Make it, or name another --output.")
    if png is not None:
        there = next(place for place in (png, *png.resolve().parents) if place.exists())
        if not there.is_dir():
            raise RunError(f"{there}: is a file", "Give the name of a folder: --png FOLDER")


def write_report(facts: ReportFacts, output: Path, png: Path | None = None) -> None:
    """Write a report as HTML, its pictures into the folder `png`; raises RunError if that fails."""
    sections = report_sections(facts)
    text = page(f"{facts.name}: report", sections, SCRIPT)
    if png is not None:
        parts = [part for section in sections for part in section.parts]
        parts = [part.part if isinstance(part, Folded) else part for part in parts]
        write_pngs({part.name: part.figure for part in parts if isinstance(part, Picture)}, png)
    try:
        atomic_text(output, text)
    except OSError as error:
        raise not_writable(output, "--output", error) from None


def report_sections(facts: ReportFacts) -> list[PageSection]:
    """Make the sections of a report, leaving out those that would be empty."""
    examined = facts.examined
    losses = (
        "Those with the highest loss first: they are often wrong labels. A click on a heading "
        "sorts. Losses are means over the terms of an example, in nats (of scores: squared "
        "errors), without label smoothing, z-loss and weights."
    )
    # From the whole to the details.
    sections = [
        _metrics_section(examined),
        _training_section(facts.history),
        _sheet_section(facts.sheet),
        _class_section(examined),
        _score_section(examined),
        calibration_section(examined, facts.fitted),
        _mistake_section(examined),
        _length_section(examined),
        PageSection(
            "Every example",
            [*([Paragraph(losses)] if examined.has_losses else []), ExampleTable(examined)],
        ),
        _explained_section(examined, facts.explained),
        None if facts.recipe is None else PageSection("Recipe", [Paragraph(facts.recipe, "pre")]),
    ]
    return [section for section in sections if section is not None]


def _metrics_section(examined: Examined) -> PageSection:
    rows = [(name, f"{value:.4f}") for name, value in examined.metrics.items()]
    report = examined.bundle.report
    text = (
        f"{len(examined.examples):,} examples from {examined.records.origin}, answered by "
        f"{report.source if report else 'a model'} ({examined.task.name})."
    )
    return PageSection("Figures", [Paragraph(text), Grid(("", "value"), rows)])


def _training_section(history: MetricHistory) -> PageSection | None:
    if not history.curves:
        return None
    parts: list[PagePart] = [
        Picture(history_chart(history), "figures over the updates", name="training")
    ]
    # What is gained costs distance from the reference: is it worth it?
    gained = [name for name in GAINED if len(history.frontier(name)) > 1]
    if gained:
        caption = (
            "Evaluations: what was gained against how far the model is from its reference. Where "
            "more KL brings no more, training only moves the model away."
        )
        picture = frontier_chart(history, gained)
        parts.append(Picture(picture, "gain against KL", caption, "frontier"))
    return PageSection("Training", parts)


def _sheet_section(sheet: Sequence[SheetRow]) -> PageSection | None:
    """Show the replies before training beside those after it."""
    if not sheet:
        return None
    names, shown = score_names(sheet), sheet[:SHEET_ROWS]
    rows = []
    for row in shown:
        cells: list[object] = [shortened("\n".join(row.history), SHEET_LENGTH)]
        for reply in (row.before, row.after):
            cells.append(shortened(reply.reply, SHEET_LENGTH))
            cells += [f"{reply.scores[name]:.4g}" for name in names]
        rows.append(cells)
    steps = sorted({row.after.step for row in sheet})
    after = f"after {', '.join(f'{step:,}' for step in steps)} updates"
    header = ("prompt", "before training", *names, after, *names)
    width = 1 + len(names)
    numbers = [start + i for start in (2, 2 + width) for i in range(len(names))]
    caption = f"The first {len(shown):,} of them" if len(shown) < len(sheet) else ""
    return PageSection(
        "Replies before and after",
        [Paragraph(sheet_summary(sheet)), Grid(header, rows, caption, numbers=numbers)],
    )


def _class_section(examined: Examined) -> PageSection | None:
    """Show the metrics of each class, and the confusion matrix if classes exclude each other."""
    classes = examined.details.get("per_class")
    if not classes:
        return None
    names = list(next(iter(classes.values())))
    rows = [(label, *(_number(own[name]) for name in names)) for label, own in classes.items()]
    parts: list[PagePart] = [Grid(("label", *names), rows)]
    if "confusion" in examined.details:
        parts += _confusion(examined.details["labels"], examined.details["confusion"])
    return PageSection("Classes", parts)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[PagePart]:
    if len(labels) > MAX_CONFUSION_CLASSES:
        text = f"A confusion matrix of {len(labels)} labels cannot be read; see the mistakes."
        return [Paragraph(text)]
    caption = "Confusion matrix: rows are the truth and add up to 100%; the counts are below."
    chart = Picture(confusion_chart(labels, matrix), "confusion matrix", caption, "confusion")
    counts = [
        (label, *(f"{n:,}" for n in row), f"{sum(row):,}")
        for label, row in zip(labels, matrix, strict=True)
    ]
    return [chart, Grid(("truth \\ answer", *labels, "all"), counts, "Counts")]


def _score_section(examined: Examined) -> PageSection | None:
    """Plot true scores against answers, if answers are numbers that are neither right nor wrong."""
    grades = [example.grade for example in examined.examples]
    if any(grade.right is not None for grade in grades):
        return None
    try:
        pairs = [(float(grade.truth), float(grade.answer)) for grade in grades]
    except ValueError:
        return None
    truth, answers = zip(*pairs, strict=True)
    chart = scatter_chart(truth, answers)
    return PageSection("Scores", [Picture(chart, "true scores and answers", name="scores")])


def calibration_section(examined: Examined, fitted: Examined | None) -> PageSection | None:
    """Show whether the model is right as often as it is sure, as it is and with a temperature.

    The temperature is fitted on `fitted`, or on `examined` itself.
    """
    decisions = _decisions(examined)
    if not decisions:
        return None
    # As the model is.
    right = [decision.right for decision in decisions]
    now = reliability([decision.confidence for decision in decisions], right)
    series = {"as it is": now}
    what = "answers" if len(decisions) == len(examined.examples) else "decisions"
    parts: list[PagePart] = [
        Paragraph(f"Expected calibration error of {len(decisions):,} {what}: {now.ece:.4f}.")
    ]
    # A temperature needs the probabilities of all possible answers, not only of the given one.
    here = whole_distributions(decisions)
    there = here if fitted is None else whole_distributions(_decisions(fitted))
    if here is not None and there is not None:
        temperature = fit_temperature(*there)
        after = _with_temperature(here[0], decisions, temperature)
        series[f"temperature {temperature:.2f}"] = after
        place = "these very data" if fitted is None else fitted.records.origin
        meaning = "above 1: the model is too sure"
        if abs(math.log(temperature)) > LOG_TEMPERATURE_LIMIT - 1e-6:
            meaning = "the limit: no temperature is best"
        text = (
            f"Temperature fitted on {place}: {temperature:.3f} ({meaning}). "
            f"With it the loss goes from {nll(*here, 1.0):.4f} to {nll(*here, temperature):.4f}, "
            f"the calibration error from {now.ece:.4f} to {after.ece:.4f}."
        )
        parts.append(Paragraph(text))
    # One picture for both, to see what the temperature changes.
    parts.append(Picture(reliability_chart(series), "reliability diagram", name="calibration"))
    return PageSection("Calibration", parts)


def _decisions(examined: Examined) -> list[Decision]:
    """Collect all decisions whose confidence is a number (a broken model gives NaN)."""
    decisions = (own for example in examined.examples for own in example.grade.decisions)
    return [decision for decision in decisions if math.isfinite(decision.confidence)]


def _with_temperature(
    log_p: Array, decisions: Sequence[Decision], temperature: float
) -> Reliability:
    """Bin the same decisions by their confidence at a temperature."""
    chosen = [decision.predicted for decision in decisions]
    confidence = at_temperature(log_p, temperature)[np.arange(len(chosen)), chosen]
    return reliability(confidence.tolist(), [decision.right for decision in decisions])


def _mistake_section(examined: Examined) -> PageSection | None:
    """Count the mistakes by kind, and show those that the model was most confident of."""
    mistakes = [(n, m) for n, e in enumerate(examined.examples) for m in e.grade.mistakes]
    if not mistakes:
        return None
    kinds = Counter(mistake.kind for _, mistake in mistakes)
    parts: list[PagePart] = [_counts(kinds, "kind")]
    if details := Counter(str(mistake) for _, mistake in mistakes if mistake.detail):
        # If there is a single kind, the details tell everything.
        parts = [*(parts if len(kinds) > 1 else []), _counts(details, "mistake")]
    if confident := _most_confident(examined, mistakes, with_kind=len(kinds) > 1):
        parts.append(confident)
    return PageSection("Mistakes", parts)


def _counts(counts: Counter[str], name: str) -> Grid:
    caption = f"The {MISTAKE_ROWS} most frequent" if len(counts) > MISTAKE_ROWS else ""
    rows = [(key, f"{n:,}") for key, n in counts.most_common(MISTAKE_ROWS)]
    return Grid((name, "how often"), rows, caption)


def _most_confident(
    examined: Examined, mistakes: Sequence[tuple[int, Mistake]], *, with_kind: bool
) -> Grid | None:
    """Tabulate the mistakes, each with the number of its example, the most confident first."""
    place, places = examined.places()
    known = [(m.confidence, n, m) for n, m in mistakes if m.confidence is not None]
    # Mistakes about a part of a text show that part; others the truth and the answer.
    about_parts = any(mistake.text for _, mistake in mistakes)
    rows = []
    for confidence, number, mistake in sorted(known, key=lambda item: (-item[0], item[1])):
        grade = examined.examples[number].grade
        kind = [str(mistake)] if with_kind else []
        compared = [mistake.text] if about_parts else [grade.truth, grade.answer]
        texts = (*compared, " | ".join(examined.text(number).values()))
        cells = (shortened(text, MISTAKE_LENGTH) for text in texts)
        rows.append((places[number], f"{confidence:.3f}", *kind, *cells))
        if len(rows) == MISTAKE_ROWS:
            break
    names = ["of"] if about_parts else ["truth", "answer"]
    header = (place, "confidence", *(["mistake"] if with_kind else []), *names, "example")
    caption = "The most confident mistakes"
    return Grid(header, rows, caption, numbers=(0, 1)) if rows else None


def _length_section(examined: Examined) -> PageSection | None:
    """Show loss and accuracy by the length of the examples."""
    groups = by_length(examined.examples)
    if len(groups) < 2 or not examined.has_losses:
        return None
    names, shares, rows = [], [], []
    for own in groups:
        judged = [bool(e.grade.right) for e in own if e.grade.right is not None]
        low, high = min(e.tokens for e in own), max(e.tokens for e in own)
        names.append(f"{low} to {high}" if low < high else f"{low}")
        loss = sum(e.loss for e in own) / max(sum(e.terms for e in own), 1)
        rows.append((names[-1], f"{len(own):,}", f"{loss:.4f}"))
        if judged:
            shares.append(sum(judged) / len(judged))
    header = ("tokens", "examples", "loss")
    # Some groups have no answer that is right or wrong: there is no accuracy to show.
    if len(shares) < len(groups):
        return PageSection("By length", [Grid(header, rows)])
    whole = [(*row, f"{share:.4f}") for row, share in zip(rows, shares, strict=True)]
    grid = Grid((*header, "share that is right"), whole)
    chart = bar_chart(names, {"right": [round(s, 4) for s in shares]}, "share that is right")
    picture = Picture(chart, "accuracy by length in tokens", name="lengths")
    return PageSection("By length", [grid, picture])


def by_length(examples: Sequence[Example]) -> list[list[Example]]:
    """Group examples by length, shortest first, into groups of about the same size.

    Examples of the same length stay together.
    """
    lengths = np.array([example.tokens for example in examples])
    shares = np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS
    edges = np.unique(np.quantile(lengths, shares, method="higher"))
    which = np.searchsorted(edges, lengths, side="left")
    groups = [
        [examples[i] for i in np.flatnonzero(which == g).tolist()] for g in range(len(edges) + 1)
    ]
    return [group for group in groups if group]


@dataclass(frozen=True)
class ColouredTokens(PagePart):
    """Tokens in the colours of their attributions: orange raises the loss, blue lowers it."""

    explained: Explained

    @override
    def html(self) -> str:
        strongest = max(map(abs, self.explained.attributions), default=0.0) or 1.0
        spans = []
        for token, value in zip(self.explained.tokens, self.explained.attributions, strict=True):
            colour = "230, 120, 0" if value > 0 else "0, 114, 178"
            style = f"background: rgba({colour}, {abs(value) / strongest * 0.8:.2f})"
            spans.append(f'<span style="{style}" title="{value:+.4f}">{for_html(token)}</span>')
        return f'<p class="tokens">{" ".join(spans)}</p>'


def _explained_section(
    examined: Examined, explained: Mapping[int, Explained]
) -> PageSection | None:
    """Show attributions and attention maps of the examples that were explained."""
    if not explained:
        return None
    method = (
        "Gradient x input: how much the loss would rise, to first order, if the embedding of a "
        "token grew. Orange raises the loss, blue lowers it, each relative to the strongest of its "
        "example; the number shows where the pointer rests. The values do not add up to the loss, "
        "and a token can matter without having one. Attention maps are the mean over the heads of "
        "a layer: a row is a token that looks, a column one that is looked at."
    )
    kind, places = examined.places()
    parts: list[PagePart] = [Paragraph(method)]
    for number, own in explained.items():
        example, place = examined.examples[number], f"{kind} {places[number]}"
        truth, answer = example.grade.truth, example.grade.answer
        judged = f"; truth: {truth or NOTHING}; answer: {answer or NOTHING}"
        heading = f"{place.capitalize()}: loss {example.mean_loss:.4f}"
        parts += [Paragraph(heading + (judged if truth or answer else "")), ColouredTokens(own)]
        if own.attention is not None:
            # Several examples may begin in one line of a text: their number tells them apart.
            name = f"attention-{place.replace(' ', '-')}"
            name += f"-{number + 1}" if isinstance(examined.task, ReadsStream) else ""
            chart = Picture(attention_chart(own), f"attention maps of {place}", name=name)
            parts.append(Folded("Attention maps", chart))
    return PageSection("What the loss hangs on", parts)
