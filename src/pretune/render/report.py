"""Report on a trained model: one HTML page with its training, its mistakes and every example."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
from pretune.evaluation.label_errors import LabelErrors, label_errors_of
from pretune.experiments.history import MetricHistory
from pretune.render.attention_maps import attention_chart
from pretune.render.charts import bar_chart, write_pngs
from pretune.render.escaping import shortened
from pretune.render.example_table import SCRIPT, ExampleTable, mistake_text
from pretune.render.explained_views import ColouredTokens
from pretune.render.grid import Grid
from pretune.render.page import Folded, PagePart, PageSection, Paragraph, Picture, page
from pretune.render.report_charts import (
    confusion_chart,
    frontier_chart,
    history_chart,
    reliability_chart,
    scatter_chart,
)
from pretune.render.result_views import label_summary, sheet_summary
from pretune.tasks.base import ReadsStream
from pretune.tasks.classification.counts import shown_figure
from pretune.tasks.grading import Decision, Mistake
from pretune.text.spoken_language import labelled, tr
from pretune.training.first_look import data_sentences
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
    when: float = field(default_factory=time.time)  # seconds since 1970
    data: Mapping[str, Any] = field(default_factory=dict)  # `RunResult.data`, of a finished run


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
    lead = [Paragraph(headline(facts.examined), kind="lead"), *_origin(facts)]
    text = page(tr(f"{facts.name}: report"), sections, SCRIPT, lead)
    if png is not None:
        parts = [part for section in sections for part in section.parts]
        parts = [part.part if isinstance(part, Folded) else part for part in parts]
        write_pngs({part.name: part.figure for part in parts if isinstance(part, Picture)}, png)
    try:
        atomic_text(output, text)
    except OSError as error:
        raise not_writable(output, "--output", error) from None


def headline(examined: Examined) -> str:
    """Tell in a sentence how good the model is, and what it gets wrong most often."""
    judged = [own.grade.right for own in examined.examples if own.grade.right is not None]
    # Scores and texts are neither right nor wrong: the metric that decides tells of them.
    if not judged:
        name = next(
            (n for n in ("perplexity", examined.task.best_by) if n in examined.metrics), None
        )
        name = name or next(iter(examined.metrics))
        value = examined.metrics[name]
        return tr(f"{name} {value:.4g} on {len(examined.examples):,} examples.")
    right = sum(judged)
    start = tr(f"{right:,} of {len(judged):,} right ({right / len(judged):.1%})")
    mistakes = Counter(mistake_text(m) for own in examined.examples for m in own.grade.mistakes)
    if not mistakes:
        return start + tr("; no mistakes.")
    kinds = {m.kind for own in examined.examples for m in own.grade.mistakes}
    worst, count = mistakes.most_common(1)[0]
    if mistakes.total() == 1:
        return start + tr(f"; the one mistake: {worst}.")
    if count == 1:
        return start + tr("; no mistake occurs twice.")
    if kinds == {"confused"}:
        worst = worst.removeprefix(labelled(tr("confused"), ""))
        return start + tr(f"; most often confused: {worst} ({count:,} times).")
    return start + tr(f"; most frequent mistake: {worst} ({count:,}).")


def _origin(facts: ReportFacts) -> list[PagePart]:
    """Tell which model this is about, which data, and when."""
    examined, bundle = facts.examined, facts.examined.bundle
    count = sum(parameter.numel() for parameter in bundle.model.parameters())
    model = f"{facts.name} ({examined.task.name}, {bundle.family.model_type})"
    parts = (
        tr(f"Model: {model} with {count:,} parameters"),
        tr(f"Data: {examined.records.origin}"),
        tr(f"Date: {time.strftime('%Y-%m-%d %H:%M', time.localtime(facts.when))}"),
    )
    return [Paragraph(" · ".join(parts), kind="facts")]


def report_sections(facts: ReportFacts) -> list[PageSection]:
    """Make the sections of a report, leaving out those that would be empty."""
    examined = facts.examined
    losses = tr(
        "Sorted by loss, highest first: examples at the top are often mislabelled. Click a column "
        "heading to sort. The loss of an example is the mean over its terms, in nats (for scores, "
        "the squared error), without label smoothing, z-loss or class weights."
    )
    # From the whole to the details.
    sections = [
        _metrics_section(examined),
        _data_section(facts.data),
        _training_section(facts.history),
        _sheet_section(facts.sheet),
        _class_section(examined),
        _score_section(examined),
        calibration_section(examined, facts.fitted),
        _mistake_section(examined),
        _label_section(examined),
        _length_section(examined),
        PageSection(
            tr("All examples"),
            [*([Paragraph(losses)] if examined.has_losses else []), ExampleTable(examined)],
        ),
        _explained_section(examined, facts.explained),
        None
        if facts.recipe is None
        else PageSection(tr("Recipe"), [Paragraph(facts.recipe, "pre")]),
    ]
    return [section for section in sections if section is not None]


def _metrics_section(examined: Examined) -> PageSection:
    rows = [
        (shown_figure(name, examined.details), f"{value:.4f}")
        for name, value in examined.metrics.items()
    ]
    report = examined.bundle.report
    text = tr(
        f"{len(examined.examples):,} examples from {examined.records.origin}, answered by "
        f"{report.source if report else 'a model'} ({examined.task.name})."
    )
    return PageSection(tr("Metrics"), [Paragraph(text), Grid(("", tr("value")), rows)])


def _data_section(data: Mapping[str, Any]) -> PageSection | None:
    """Say which records of its data the run could not use."""
    sentences = list(data_sentences(data))
    parts: list[PagePart] = [Paragraph(text) for text in sentences]
    return PageSection(tr("Data"), parts) if parts else None


def _training_section(history: MetricHistory) -> PageSection | None:
    if not history.curves:
        return None
    parts: list[PagePart] = [
        Picture(history_chart(history), tr("metrics over the updates"), name="training")
    ]
    # What is gained costs distance from the reference: is it worth it?
    gained = [name for name in GAINED if len(history.frontier(name)) > 1]
    if gained:
        caption = tr(
            "Each point is an evaluation: the gain against the KL divergence from the reference. "
            "Where more KL brings no further gain, training only moves the model away."
        )
        picture = frontier_chart(history, gained)
        parts.append(Picture(picture, tr("gain against KL"), caption, "frontier"))
    return PageSection(tr("Training"), parts)


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
    after = tr(f"after {', '.join(f'{step:,}' for step in steps)} updates")
    header = (tr("prompt"), tr("before training"), *names, after, *names)
    width = 1 + len(names)
    numbers = [start + i for start in (2, 2 + width) for i in range(len(names))]
    caption = tr(f"The first {len(shown):,} of them") if len(shown) < len(sheet) else ""
    return PageSection(
        tr("Replies before and after"),
        [Paragraph(sheet_summary(sheet)), Grid(header, rows, caption, numbers=numbers)],
    )


def _class_section(examined: Examined) -> PageSection | None:
    """Show the metrics of each class, and the confusion matrix if classes exclude each other."""
    classes = examined.details.get("per_class")
    if not classes:
        return None
    names = list(next(iter(classes.values())))
    rows = [(label, *(_number(own[name]) for name in names)) for label, own in classes.items()]
    parts: list[PagePart] = [Grid((tr("label"), *names), rows)]
    if "confusion" in examined.details:
        parts += _confusion(examined.details["labels"], examined.details["confusion"])
    return PageSection(tr("Classes"), parts)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[PagePart]:
    if len(labels) > MAX_CONFUSION_CLASSES:
        text = tr(
            f"A confusion matrix of {len(labels)} labels would be unreadable; see the mistakes."
        )
        return [Paragraph(text)]
    caption = tr(
        "Confusion matrix: each row is a true label and adds up to 100%; the counts are below."
    )
    if not all(map(sum, matrix)):
        caption = tr(
            "Confusion matrix: each row is a true label and adds up to 100%, but for labels that "
            "no example has; the counts are below."
        )
    chart = Picture(confusion_chart(labels, matrix), tr("confusion matrix"), caption, "confusion")
    counts = [
        (label, *(f"{n:,}" for n in row), f"{sum(row):,}")
        for label, row in zip(labels, matrix, strict=True)
    ]
    header = (tr("true \\ predicted"), *labels, tr("total"))
    return [chart, Grid(header, counts, tr("Counts"))]


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
    picture = Picture(chart, tr("true and predicted scores"), name="scores")
    return PageSection(tr("Scores"), [picture])


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
    series = {"as trained": now}
    if len(decisions) == len(examined.examples):
        error = tr(f"Expected calibration error of {len(decisions):,} answers: {now.ece:.4f}.")
    else:
        error = tr(f"Expected calibration error of {len(decisions):,} decisions: {now.ece:.4f}.")
    parts: list[PagePart] = [Paragraph(error)]
    # A temperature needs the probabilities of all possible answers, not only of the given one.
    here = whole_distributions(decisions)
    there = here if fitted is None else whole_distributions(_decisions(fitted))
    if here is not None and there is not None:
        temperature = fit_temperature(*there)
        after = _with_temperature(here[0], decisions, temperature)
        series[f"temperature {temperature:.2f}"] = after
        place = tr("the same data") if fitted is None else fitted.records.origin
        meaning = tr("above 1 means overconfident")
        if abs(math.log(temperature)) > LOG_TEMPERATURE_LIMIT - 1e-6:
            meaning = tr("the limit of the search: no temperature is best")
        text = tr(
            f"Temperature fitted on {place}: {temperature:.3f} ({meaning}). "
            f"It takes the loss from {nll(*here, 1.0):.4f} to {nll(*here, temperature):.4f} and "
            f"the calibration error from {now.ece:.4f} to {after.ece:.4f}."
        )
        parts.append(Paragraph(text))
    # One picture for both, to see what the temperature changes.
    chart = reliability_chart(series)
    parts.append(Picture(chart, tr("reliability diagram"), name="calibration"))
    return PageSection(tr("Calibration"), parts)


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
    kinds = Counter(tr(mistake.kind) for _, mistake in mistakes)
    parts: list[PagePart] = [_counts(kinds, tr("kind"))]
    if details := Counter(mistake_text(mistake) for _, mistake in mistakes if mistake.detail):
        # If there is a single kind, the details tell everything.
        parts = [*(parts if len(kinds) > 1 else []), _counts(details, tr("mistake"))]
    if confident := _most_confident(examined, mistakes, with_kind=len(kinds) > 1):
        parts.append(confident)
    return PageSection(tr("Mistakes"), parts)


def _label_section(examined: Examined) -> PageSection | None:
    """Show the labels that confident learning takes for wrong."""
    errors = examined_label_errors(examined)
    if errors is None:
        return None
    kind, places = examined.places()
    texts = [" | ".join(examined.text(number).values()) for number in errors.suspects]
    labels = examined.details["labels"]
    return label_errors_section(errors, labels, kind, places, texts)


def examined_label_errors(examined: Examined) -> LabelErrors | None:
    """Find the labels of examples that may be wrong; None where answers are not single labels."""
    grades = [example.grade for example in examined.examples]
    return label_errors_of(grades, examined.details.get("labels", ()))


def label_errors_section(
    errors: LabelErrors,
    labels: Sequence[str],
    kind: str,
    places: Sequence[int],
    texts: Sequence[str],
) -> PageSection:
    """Lay out labels that may be wrong.

    Args:
        errors: what was found.
        labels: the names of the classes.
        kind: what a place is: `line` or `row`.
        places: of all examples.
        texts: of the suspects, in their order.
    """
    summary = label_summary(errors)
    about = tr(
        f"{summary[:1].upper()}{summary[1:]}. An example is listed where a class other than its "
        "label has at least the probability that this class has on the average where it is the "
        "label; those with the largest distance between the two come first. That holds where the "
        "model did not learn from these labels."
    )
    rows = [
        (
            places[number],
            f"{errors.confidence[number]:.3f}",
            shortened(labels[errors.given[number]], MISTAKE_LENGTH),
            shortened(labels[errors.suggested[number]], MISTAKE_LENGTH),
            shortened(text, MISTAKE_LENGTH),
        )
        for number, text in zip(errors.suspects[:MISTAKE_ROWS], texts, strict=False)
    ]
    header = (tr(kind), tr("probability"), tr("label"), tr("rather"), tr("example"))
    parts: list[PagePart] = [Paragraph(about)]
    if rows:
        parts.append(Grid(header, rows, tr("The most suspicious labels"), numbers=(0, 1)))
    return PageSection(tr("Labels that may be wrong"), parts)


def _counts(counts: Counter[str], name: str) -> Grid:
    caption = tr(f"The {MISTAKE_ROWS} most frequent") if len(counts) > MISTAKE_ROWS else ""
    rows = [(key, f"{n:,}") for key, n in counts.most_common(MISTAKE_ROWS)]
    return Grid((name, tr("count")), rows, caption)


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
        kind = [mistake_text(mistake)] if with_kind else []
        compared = [mistake.text] if about_parts else [grade.truth, grade.answer]
        texts = (*compared, " | ".join(examined.text(number).values()))
        cells = (shortened(text, MISTAKE_LENGTH) for text in texts)
        rows.append((places[number], f"{confidence:.3f}", *kind, *cells))
        if len(rows) == MISTAKE_ROWS:
            break
    names = [tr("span")] if about_parts else [tr("truth"), tr("answer")]
    kinds = [tr("mistake")] if with_kind else []
    header = (tr(place), tr("confidence"), *kinds, *names, tr("example"))
    caption = tr("The most confident mistakes")
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
        names.append(f"{low}–{high}" if low < high else f"{low}")
        loss = sum(e.loss for e in own) / max(sum(e.terms for e in own), 1)
        rows.append((names[-1], f"{len(own):,}", f"{loss:.4f}"))
        if judged:
            shares.append(sum(judged) / len(judged))
    header = (tr("tokens"), tr("examples"), tr("loss"))
    # Some groups have no answer that is right or wrong: there is no accuracy to show.
    if len(shares) < len(groups):
        return PageSection(tr("By length"), [Grid(header, rows)])
    whole = [(*row, f"{share:.4f}") for row, share in zip(rows, shares, strict=True)]
    grid = Grid((*header, tr("accuracy")), whole)
    chart = bar_chart(names, {"right": [round(s, 4) for s in shares]}, "accuracy")
    picture = Picture(chart, tr("accuracy by length in tokens"), name="lengths")
    return PageSection(tr("By length"), [grid, picture])


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


def _explained_section(
    examined: Examined, explained: Mapping[int, Explained]
) -> PageSection | None:
    """Show attributions and attention maps of the examples that were explained."""
    if not explained:
        return None
    method = tr(
        "Integrated gradients: how much of the loss each token accounts for, compared with the "
        "same example with every token masked (or left empty). Orange raises the loss, blue lowers "
        "it, relative to the strongest token of the example; point at a token to see its value. "
        "The values add up to the loss minus that of the masked example. Attention maps show the "
        "mean over the heads of a layer: rows attend, columns are attended to."
    )
    kind, places = examined.places()
    parts: list[PagePart] = [Paragraph(method)]
    for number, own in explained.items():
        example = examined.examples[number]
        line = places[number]
        place = tr(f"line {line}") if kind == "line" else tr(f"row {line}")
        truth, answer = example.grade.truth, example.grade.answer
        heading = tr(f"{place.capitalize()}: loss {example.mean_loss:.4f}")
        if truth or answer:
            nothing = tr(NOTHING)
            heading += tr(f"; truth: {truth or nothing}; answer: {answer or nothing}")
        parts += [Paragraph(heading), ColouredTokens(own)]
        if own.attention is not None:
            # Several examples may begin in one line of a text: their number tells them apart.
            name = f"attention-{kind}-{line}"
            name += f"-{number + 1}" if isinstance(examined.task, ReadsStream) else ""
            chart = Picture(attention_chart(own), tr(f"attention maps of {place}"), name=name)
            parts.append(Folded(tr("Attention maps"), chart))
    return PageSection(tr("Token attributions"), parts)
