"""The parts of a report that add examples up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pretune.data.arrays import Array
from pretune.evaluation.calibration import (
    LIMIT,
    Reliability,
    fit_temperature,
    nll,
    reliability,
    sharpened,
    whole_distributions,
)
from pretune.evaluation.examine import Examined, Example
from pretune.render.charts import bar_chart
from pretune.render.page import Grid, Paragraph, Part, Picture, Section
from pretune.render.report_charts import confusion_chart, reliability_chart, scatter_chart
from pretune.render.report_examples import cut
from pretune.tasks.grading import Decision, Mistake

#: Rows of the tables of mistakes, characters of each text there, groups by length.
SHOWN, CUT, GROUPS = 25, 300, 6
#: Wider confusion matrices cannot be read.
MOST_CLASSES = 60


def figures_section(examined: Examined) -> Section:
    """The figures, as `evaluate` gives them."""
    rows = [(name, f"{value:.4f}") for name, value in examined.metrics.items()]
    report = examined.bundle.report
    text = (
        f"{len(examined.examples):,} examples from {examined.records.origin}, answered by "
        f"{report.source if report else 'a model'} ({examined.task.name})."
    )
    return Section("Figures", [Paragraph(text), Grid(("", "value"), rows, numbers=(1,))])


def class_section(examined: Examined) -> Section | None:
    """Figures of each class, and the confusion matrix of those that exclude each other."""
    classes = examined.details.get("per_class")
    if not classes:
        return None
    names = list(next(iter(classes.values())))
    rows = [(label, *(_figure(own[name]) for name in names)) for label, own in classes.items()]
    grid = Grid(("label", *names), rows, numbers=range(1, len(names) + 1))
    parts: list[Part] = [grid]
    if "confusion" in examined.details:
        parts += _confusion(examined.details["labels"], examined.details["confusion"])
    return Section("Classes", parts)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _confusion(labels: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[Part]:
    if len(labels) > MOST_CLASSES:
        text = f"A confusion matrix of {len(labels)} labels cannot be read; see the mistakes."
        return [Paragraph(text)]
    chart = confusion_chart(labels, matrix)
    caption = "Confusion matrix: rows are the truth and add up to 100%; the counts are below."
    parts: list[Part] = [Picture(chart, "confusion matrix", caption, "confusion")]
    counts = [
        (label, *(f"{n:,}" for n in row), f"{sum(row):,}")
        for label, row in zip(labels, matrix, strict=True)
    ]
    header = ("truth \\ answer", *labels, "all")
    parts.append(Grid(header, counts, "Counts", range(1, len(header))))
    return parts


def score_section(examined: Examined) -> Section | None:
    """True scores and answers, where these are numbers that are neither right nor wrong."""
    grades = [example.grade for example in examined.examples]
    if any(grade.right is not None for grade in grades):
        return None
    try:
        pairs = [(float(grade.truth), float(grade.answer)) for grade in grades]
    except ValueError:
        return None
    truth, answers = zip(*pairs, strict=True)
    chart = scatter_chart(truth, answers)
    return Section("Scores", [Picture(chart, "true scores and answers", name="scores")])


def calibration_section(examined: Examined, fitted: Examined | None) -> Section | None:
    """Whether the model is right as often as it is sure; and with a temperature."""
    decisions = _decisions(examined)
    if not decisions:
        return None
    now = _reliability(decisions)
    series = {"as it is": now}
    what = "answers" if len(decisions) == len(examined.examples) else "decisions"
    parts: list[Part] = [
        Paragraph(f"Expected calibration error of {len(decisions):,} {what}: {now.ece:.4f}.")
    ]
    here = whole_distributions(decisions)
    there = here if fitted is None else whole_distributions(_decisions(fitted))
    if here is not None and there is not None:
        temperature = fit_temperature(*there)
        series[f"temperature {temperature:.2f}"] = after = _sharper(here, decisions, temperature)
        place = "these very data" if fitted is None else fitted.records.origin
        says = "above 1: the model is too sure"
        if abs(math.log(temperature)) > LIMIT - 1e-6:
            says = "the limit: no temperature is best"
        text = (
            f"Temperature fitted on {place}: {temperature:.3f} ({says}). "
            f"With it the loss goes from {nll(*here, 1.0):.4f} to {nll(*here, temperature):.4f}, "
            f"the calibration error from {now.ece:.4f} to {after.ece:.4f}."
        )
        parts.append(Paragraph(text))
    chart = reliability_chart(series)
    parts.append(Picture(chart, "reliability diagram", name="calibration"))
    return Section("Calibration", parts)


def _decisions(examined: Examined) -> list[Decision]:
    """All of them; but not those of a model that gives no numbers."""
    every = (one for example in examined.examples for one in example.grade.decisions)
    return [one for one in every if math.isfinite(one.confidence)]


def _reliability(decisions: Sequence[Decision]) -> Reliability:
    sure = [decision.confidence for decision in decisions]
    return reliability(sure, [decision.right for decision in decisions])


def _sharper(
    here: tuple[Array, Array], decisions: Sequence[Decision], temperature: float
) -> Reliability:
    """The same decisions, as sure as they are at a temperature."""
    said = [decision.said for decision in decisions]
    after = sharpened(here[0], temperature)[np.arange(len(said)), said]
    return reliability(after.tolist(), [decision.right for decision in decisions])


def mistake_section(examined: Examined) -> Section | None:
    """The kinds of mistakes, and those that the model was surest of."""
    found = [(n, m) for n, e in enumerate(examined.examples) for m in e.grade.mistakes]
    if not found:
        return None
    kinds = Counter(mistake.kind for _, mistake in found)
    parts: list[Part] = [_counted(kinds, "kind")]
    if details := Counter(str(mistake) for _, mistake in found if mistake.detail):
        # Of a single kind the details say it all.
        parts = [*(parts if len(kinds) > 1 else []), _counted(details, "mistake")]
    if surest := _surest(examined, found, several=len(kinds) > 1):
        parts.append(surest)
    return Section("Mistakes", parts)


def _surest(
    examined: Examined, found: Sequence[tuple[int, Mistake]], *, several: bool
) -> Grid | None:
    """The mistakes that the model was surest of; with their kinds, where there are several."""
    place, places = examined.places()
    known = [(m.confidence, n, m) for n, m in found if m.confidence is not None]
    parts_named = any(mistake.text for _, mistake in found)
    rows = []
    for sure, number, mistake in sorted(known, key=lambda item: (-item[0], item[1]))[:SHOWN]:
        grade = examined.examples[number].grade
        kind = [str(mistake)] if several else []
        said = [mistake.text] if parts_named else [grade.truth, grade.answer]
        texts = [cut(text, CUT) for text in (*said, " | ".join(examined.text(number).values()))]
        rows.append((places[number], f"{sure:.3f}", *kind, *texts))
    compared = ["of"] if parts_named else ["truth", "answer"]
    header = (place, "confidence", *(["mistake"] if several else []), *compared, "example")
    return Grid(header, rows, "The most confident mistakes", (0, 1)) if rows else None


def _counted(what: Counter[str], name: str) -> Grid:
    """What there is most of."""
    caption = f"The {SHOWN} most frequent" if len(what) > SHOWN else ""
    return Grid(
        (name, "how often"), [(x, f"{n:,}") for x, n in what.most_common(SHOWN)], caption, (1,)
    )


def length_section(examined: Examined) -> Section | None:
    """How often the model is right, and its loss, by the length of the examples."""
    groups = by_length(examined.examples)
    if len(groups) < 2:
        return None
    names, shares, rows = [], [], []
    for own in groups:
        judged = [bool(e.grade.right) for e in own if e.grade.right is not None]
        low, high = min(e.tokens for e in own), max(e.tokens for e in own)
        names.append(f"{low} to {high}" if low < high else f"{low}")
        shares += [sum(judged) / len(judged)] if judged else []
        loss = sum(e.loss for e in own) / max(sum(e.terms for e in own), 1)
        rows.append((names[-1], f"{len(own):,}", f"{loss:.4f}", *_share(judged)))
    if len(shares) < len(groups):
        header = ("tokens", "examples", "loss")
        return Section("By length", [Grid(header, [row[:3] for row in rows], numbers=(1, 2))])
    grid = Grid(("tokens", "examples", "loss", "share that is right"), rows, numbers=(1, 2, 3))
    chart = bar_chart(names, {"right": [round(s, 4) for s in shares]}, "share that is right")
    picture = Picture(chart, "accuracy by length in tokens", name="lengths")
    return Section("By length", [grid, picture])


def _share(judged: Sequence[bool]) -> list[str]:
    return [f"{sum(judged) / len(judged):.4f}"] if judged else []


def by_length(examples: Sequence[Example]) -> list[list[Example]]:
    """Groups of about the same size, shortest first; examples of one length stay together."""
    lengths = np.array([example.tokens for example in examples])
    edges = np.unique(np.quantile(lengths, np.arange(1, GROUPS) / GROUPS, method="higher"))
    which = np.searchsorted(edges, lengths, side="left")
    groups = [
        [examples[i] for i in np.flatnonzero(which == g).tolist()] for g in range(len(edges) + 1)
    ]
    return [group for group in groups if group]
