"""Everything about a trained model on one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pretune.errors import RunError
from pretune.hub import atomic_text, make_folder
from pretune.infer.examine import Examined, Example
from pretune.infer.explain import Explained
from pretune.report.calibration import (
    fit_temperature,
    nll,
    reliability,
    sharpened,
    whole_distributions,
)
from pretune.report.charts import figure_png
from pretune.report.page import Code, Grid, Paragraph, Part, Picture, Section, escaped, page
from pretune.report.report_charts import (
    attention_chart,
    confusion_chart,
    course_chart,
    reliability_chart,
)
from pretune.report.report_examples import SCRIPT, ExampleTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The most confident mistakes that are shown, and characters of each text.
SHOWN, CUT = 20, 300
#: Wider confusion matrices cannot be read.
MOST_CLASSES = 60


@dataclass(frozen=True)
class ReportFacts:
    """What a report is made of.

    Attributes:
        name: of the run.
        recipe: as YAML; None where the model is no run of ours.
        course: steps and values of each logged figure.
        examined: all examples.
        explained: attributions of some of them, by their numbers.
        fitted: the examples that the temperature is fitted on; None: the same ones.
    """

    name: str
    recipe: str | None
    course: Mapping[str, tuple[list[float], list[float]]]
    examined: Examined
    explained: Mapping[int, Explained]
    fitted: Examined | None = None


@dataclass(frozen=True)
class Coloured:
    """Tokens in the colours of their attributions."""

    explained: Explained

    def html(self) -> str:
        """As HTML: red raises the loss, blue lowers it; the number is in the title."""
        most = max(map(abs, self.explained.attributions), default=0.0) or 1.0
        found = []
        for token, value in zip(self.explained.tokens, self.explained.attributions, strict=True):
            colour = "213, 94, 0" if value > 0 else "0, 114, 178"
            style = f"background: rgba({colour}, {abs(value) / most * 0.8:.2f})"
            found.append(f'<span style="{style}" title="{value:+.4f}">{escaped(token)}</span>')
        return f'<p class="tokens">{" ".join(found)}</p>'


class ReportPage:
    """Builds the page and keeps its pictures by name, for `--png`."""

    def __init__(self, facts: ReportFacts) -> None:
        self._facts = facts
        self.pictures: dict[str, bytes] = {}

    def html(self) -> str:
        """The whole page."""
        sections = [
            self._summary(),
            self._course(),
            self._classes(),
            self._calibration(),
            self._mistakes(),
            self._lengths(),
            Section("Every example", [ExampleTable(self._facts.examined)]),
            self._explanations(),
            self._recipe(),
        ]
        kept = [section for section in sections if section is not None]
        return page(f"{self._facts.name}: report", kept, SCRIPT)

    def _picture(self, name: str, figure: Figure, alt: str) -> Picture:
        self.pictures[name] = figure_png(figure)
        return Picture(self.pictures[name], alt)

    def _summary(self) -> Section:
        examined = self._facts.examined
        rows = [(name, f"{value:.4f}") for name, value in examined.metrics.items()]
        text = (
            f"{len(examined.examples):,} examples from {examined.records.origin}. "
            "Losses are in nats, without label smoothing and z-loss."
        )
        return Section("Figures", [Paragraph(text), Grid(("", "value"), rows, numbers=(1,))])

    def _recipe(self) -> Section | None:
        recipe = self._facts.recipe
        return None if recipe is None else Section("Recipe", [Code(recipe)])

    def _course(self) -> Section | None:
        if not self._facts.course:
            return None
        chart = course_chart(self._facts.course)
        return Section("Training", [self._picture("training", chart, "figures over the updates")])

    def _classes(self) -> Section | None:
        details = self._facts.examined.details
        if "confusion" not in details:
            return None
        names = ("precision", "recall", "f1")
        rows = [
            (label, *(f"{own[name]:.4f}" for name in names), f"{own['support']:,}")
            for label, own in details["per_class"].items()
        ]
        labels, matrix = details["labels"], details["confusion"]
        grid = Grid(("label", *names, "support"), rows, numbers=(1, 2, 3, 4))
        counts = [(label, *row) for label, row in zip(labels, matrix, strict=True)]
        parts: list[Part] = [grid]
        if len(labels) <= MOST_CLASSES:
            chart = confusion_chart(labels, matrix)
            parts.append(self._picture("confusion", chart, "confusion matrix"))
            caption = "rows: the truth; columns: the model's answer"
            numbers = range(1, len(labels) + 1)
            parts.append(Grid(("", *labels), counts, caption, tuple(numbers)))
        return Section("Classes", parts)

    def _calibration(self) -> Section | None:
        known = _judged(self._facts.examined.examples)
        if not known:
            return None
        sure = [example.grade.confidence or 0.0 for example in known]
        right = [bool(example.grade.right) for example in known]
        series = {"as it is": reliability(sure, right)}
        lines = [Paragraph(f"Expected calibration error: {series['as it is'].ece:.4f}.")]
        here = whole_distributions([d for e in known for d in e.grade.decisions])
        other, fitted = self._facts.fitted, here
        if other is not None:
            fitted = whole_distributions([d for e in other.examples for d in e.grade.decisions])
        if here is not None and fitted is not None:
            temperature = fit_temperature(*fitted)
            better = sharpened(here[0], temperature)
            series["at that temperature"] = reliability(better.max(1).tolist(), right)
            place = "these very data" if other is None else other.records.origin
            lines.append(
                Paragraph(
                    f"Temperature fitted on {place}: {temperature:.3f} (above 1: the model is too "
                    f"sure). Loss {nll(*here, 1.0):.4f} becomes {nll(*here, temperature):.4f}, ECE "
                    f"becomes {series['at that temperature'].ece:.4f}."
                )
            )
        chart = reliability_chart(series)
        return Section("Calibration", [*lines, self._picture("calibration", chart, "reliability")])

    def _mistakes(self) -> Section | None:
        examined = self._facts.examined
        wrong = [e for e in examined.examples if e.grade.right is False]
        if not wrong:
            return None
        kinds: dict[str, int] = {}
        for example in wrong:
            for kind in map(str, example.grade.mistakes):
                kinds[kind] = kinds.get(kind, 0) + 1
        ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]
        surest = sorted(wrong, key=lambda e: -(e.grade.confidence or 0.0))[:SHOWN]
        rows = [
            (
                *(e.record + 1, f"{e.grade.confidence or 0:.3f}", e.grade.truth, e.grade.answer),
                " | ".join(examined.text(examined.examples.index(e)).values())[:CUT],
            )
            for e in surest
        ]
        header = ("number", "confidence", "truth", "answer", "example")
        parts = [
            Grid(("kind", "how often"), ordered, numbers=(1,)),
            Grid(header, rows, "The most confident mistakes", (0, 1)),
        ]
        return Section("Mistakes", parts)

    def _lengths(self) -> Section:
        examples = sorted(self._facts.examined.examples, key=lambda e: e.tokens)
        rows = []
        for part in np.array_split(np.arange(len(examples)), min(6, len(examples))):
            own = [examples[i] for i in part.tolist()]
            judged = [e for e in own if e.grade.right is not None]
            hits = sum(bool(e.grade.right) for e in judged)
            losses = [e.mean_loss for e in own if math.isfinite(e.mean_loss)]
            rows.append(
                (
                    f"{own[0].tokens} to {own[-1].tokens}",
                    f"{len(own):,}",
                    f"{hits / len(judged):.4f}" if judged else "",
                    f"{sum(losses) / len(losses):.4f}" if losses else "",
                )
            )
        header = ("tokens", "examples", "right", "mean loss")
        return Section("By length", [Grid(header, rows, numbers=(1, 2, 3))])

    def _explanations(self) -> Section | None:
        if not self._facts.explained:
            return None
        parts: list[Part] = [
            Paragraph(
                "Gradient x input: how much the loss would rise, to first order, if the embedding "
                "of a token grew. Orange raises the loss, blue lowers it, each relative to the "
                "strongest of its example. The values do not add up to the loss, and a token can "
                "matter without having one. Maps are the mean over the heads of a layer."
            )
        ]
        for number, one in self._facts.explained.items():
            example = self._facts.examined.examples[number]
            grade = example.grade
            said = f"; {grade.truth}, answered {grade.answer}" if grade.answer else ""
            parts.append(
                Paragraph(f"Number {example.record + 1}: loss {example.mean_loss:.4f}{said}")
            )
            parts.append(Coloured(one))
            if one.attention is not None:
                chart = attention_chart(one)
                parts.append(self._picture(f"attention-{number + 1}", chart, "attention maps"))
        return Section("What the loss hangs on", parts)


def _judged(examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if e.grade.right is not None and e.grade.confidence is not None]


def write_report(built: ReportPage, output: Path, png: Path | None = None) -> None:
    """Write the page, and its pictures into a folder.

    Raises:
        RunError: a file cannot be written.
    """
    text = built.html()
    try:
        atomic_text(output, text)
        if png is not None:
            make_folder(png)
            for name, data in built.pictures.items():
                (png / f"{name}.png").write_bytes(data)
    except OSError as error:
        raise RunError(
            f"{error.filename or output}: cannot be written ({error.strerror})",
            "Choose another --output or --png.",
        ) from None
