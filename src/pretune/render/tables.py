"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from pretune.experiments.seeds import degenerate_seeds
from pretune.tasks.base import Prediction
from pretune.training.result import RunResult, SeedsResult
from pretune.training.validation import Evaluation

#: Beyond so many classes a confusion matrix is wider than a terminal.
MOST_CLASSES = 12


def run_table(result: RunResult) -> Group:
    """The outcome of a training."""
    title = "result"
    if result.metrics:
        title = f"best model on the validation data (after {result.best_step} updates)"
    table = _plain("", "value")
    for name, value in result.metrics.items():
        table.add_row(name, f"{value:.4f}")
    table.add_row("updates", f"{result.steps:,}")
    table.add_row("training time", f"{result.seconds:.1f} s")
    table.add_row("examples per second", f"{result.examples_per_second:.1f}")
    table.add_row("peak memory", f"{result.peak_memory_mb:,.0f} MiB")
    table.add_row("folder", Text(result.folder, overflow="fold"))
    return Group(Text(title, "bold"), table)


def seeds_table(result: SeedsResult) -> Group:
    """Each run, then mean ± standard deviation; runs that went wrong are marked and explained."""
    names = list(result.runs[0].metrics)
    wrong = degenerate_seeds(result)
    title = f"{len(result.runs)} seeds"
    table = _plain("seed", *names, "seconds")
    for run in result.runs:
        figures = [f"{run.metrics[name]:.4f}" for name in names]
        mark = " !" if run.seed in wrong else ""
        style = "red" if run.seed in wrong else None
        table.add_row(f"{run.seed}{mark}", *figures, f"{run.seconds:.1f}", style=style)
    table.add_section()
    mean = [f"{value:.4f}" for value, _ in result.summary().values()]
    spread = [f"{value:.4f}" for _, value in result.summary().values()]
    seconds = sum(run.seconds for run in result.runs) / len(result.runs)
    table.add_row("mean", *mean, f"{seconds:.1f}")
    table.add_row("± sd", *spread, "")
    return Group(Text(title, "bold"), table, *_alarm(wrong, len(result.runs)))


def _alarm(wrong: Mapping[int, str], count: int) -> list[Text]:
    """What to know about the seeds that went wrong."""
    if not wrong:
        return []
    lines = [Text(f"! seed {seed}: {why}", "red") for seed, why in wrong.items()]
    advice = (
        f"{len(wrong)} of {count} runs went wrong, so mean and sd say little. Fine-tuning on "
        "little data does that under some seeds; a lower train.learning_rate, a longer "
        "train.warmup and more train.epochs make it rarer."
    )
    return [*lines, Text(advice)]


def evaluation_table(result: Evaluation) -> Group:
    """All figures of an evaluation; figures per class where there are any."""
    classes: Mapping[str, Mapping[str, float]] = result.details.get("per_class", {})
    count = result.details.get("examples", result.count)
    title = f"{count:,} examples in {result.seconds:.1f} s"
    if not classes:
        table = _plain("", "value")
        for name, value in result.metrics.items():
            table.add_row(name, f"{value:.4f}")
        signatures = result.details.get("signatures", {})
        lines = [Text(f"{name}: {text}", "dim") for name, text in signatures.items()]
        return Group(Text(title, "bold"), table, *lines)
    overall = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    title = f"{title}:  {overall}"
    table = _plain("label", "precision", "recall", "f1", "support")
    for label, figures in classes.items():
        shown = [f"{figures[name]:.4f}" for name in ("precision", "recall", "f1")]
        table.add_row(Text(label), *shown, f"{figures['support']:.0f}")
    return Group(Text(title, "bold"), *([table] if classes else []))


def confusion_table(details: Mapping[str, Any]) -> Group | None:
    """The confusion matrix, if there is one and it fits."""
    labels: Sequence[str] = details.get("labels", ())
    if not 1 < len(labels) <= MOST_CLASSES:
        return None
    title = "rows: the truth; columns: the model's answer"
    table = _plain("", *map(Text, labels))
    for i, (label, row) in enumerate(zip(labels, details["confusion"], strict=True)):
        shown = [Text(str(n) if n else "·", "bold" if i == j else "") for j, n in enumerate(row)]
        table.add_row(Text(label), *shown)
    return Group(Text(title, "bold"), table)


def sample_sheet(details: Mapping[str, Any]) -> Text | None:
    """Replies that a model wrote beside those that were given, if there are any."""
    samples: Sequence[Mapping[str, Any]] = details.get("samples", ())
    if not samples:
        return None
    sheet = Text()
    for number, sample in enumerate(samples, start=1):
        sheet.append(f"{number}. " + _line(" / ".join(sample["history"])) + "\n", "bold")
        sheet.append(f"   model: {_line(sample['reply'])}\n")
        sheet.append(f"   given: {_line(sample['reference'])}\n", "dim")
    return sheet


def _line(text: str) -> str:
    """On one line, and nothing that would steer a terminal."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())


def answer_text(inputs: Mapping[str, Any], answer: Prediction, most: int = 20) -> Text:
    """An input and its answer; for classes their scores as bars."""
    shown = (" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in inputs.values())
    text = Text("  |  ".join(shown) + "\n", "bold")
    ordered = answer.ranked()
    width = max((len(label) for label, _ in ordered), default=0)
    for label, score in ordered[:most]:
        bar = "█" * round(30 * score)
        text.append(f"  {label:<{width}}  {score:6.1%}  {bar}\n")
    if answer.written is not None:
        text.append("".join(f"  {line}\n" for line in answer.written.split("\n")))
    elif not ordered:
        text.append(f"  {answer.to_dict()}\n")
    return text


def _plain(first: str | Text, *others: str | Text) -> Table:
    table = Table(pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
