"""Compare models on the same examples: confidence intervals and significance of differences.

A metric on 400 examples is a sample: another 400 examples would give another value. The interval
tells how far such samples lie apart. The test tells how often two equally good models would differ
by chance at least as widely as these two do.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from typing_extensions import override

from pretune.data.arrays import Array
from pretune.errors import RunError
from pretune.evaluation.examine import Examined
from pretune.tasks.base import AnyTask, ReadsStream
from pretune.text.notebook import Displayed
from pretune.text.terminal import in_line

#: Random numbers drawn at a time, of 8 bytes each.
_DRAWS = 2_000_000
#: A difference by chance counts as equal to the observed one despite rounding of this size.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """The value of a metric, or a difference of two, with the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """The metric of a model minus the metric of the first model."""

    # Probability of a difference as large by chance, adjusted by Holm's method for each metric.
    p: float


@dataclass(frozen=True, repr=False)
class Compared(Displayed):
    """A comparison of several models with the first of them, on the same data.

    Attributes:
        names: of the models.
        examined: the answers of each model to each example.
        level: the confidence level of the intervals, e.g. 0.95.
        resamples: of the bootstrap and the randomization test.
        figures: of each model, by metric, with their intervals.
        differences: to the first model, of each of the others, by metric.
        left_out: metrics that are not compared; `note` says why.
    """

    names: tuple[str, ...]
    examined: tuple[Examined, ...]
    level: float
    resamples: int
    figures: tuple[Mapping[str, Interval], ...]
    differences: tuple[Mapping[str, Difference], ...]
    left_out: tuple[str, ...] = ()

    @cached_property
    def same_terms(self) -> bool:
        """Whether the losses of all models have the same numbers of terms: only then compare."""
        return _same_terms(self.examined)

    @property
    def note(self) -> str | None:
        """A sentence on the metrics that are not compared; None if all are."""
        if not self.left_out:
            return None
        why = "the models cut the same examples into different numbers of tokens or other terms"
        if self.same_terms:
            why = "not all models define it as here, such as a loss with weights"
        return f"Not compared: {', '.join(self.left_out)}, as {why}."

    @cached_property
    def judged(self) -> bool:
        """Whether answers are right or wrong, unlike scores or texts."""
        return any(e.grade.right is not None for x in self.examined for e in x.examples)

    def apart(self, other: int) -> tuple[list[int], list[int]]:
        """Return the examples that only the first model gets right, and those only `other` does.

        Examples with the largest difference of losses come first; losses that cannot be compared
        count as equal. If answers are not right or wrong, the lower loss decides.
        """
        first, second = self.examined[0].examples, self.examined[other].examples
        gains = np.zeros(len(first))
        if self.same_terms:
            pairs = zip(first, second, strict=True)
            gains = np.nan_to_num([b.mean_loss - a.mean_loss for a, b in pairs], nan=0.0)
        # Above 0 where the first model is better, below where the other is.
        only = gains
        if self.judged:
            pairs = zip(first, second, strict=True)
            only = np.array([bool(a.grade.right) - bool(b.grade.right) for a, b in pairs])
        order = np.argsort(-np.abs(gains), kind="stable").tolist()
        return [i for i in order if only[i] > 0], [i for i in order if only[i] < 0]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        runs = []
        for number, (name, figures) in enumerate(zip(self.names, self.figures, strict=True)):
            run: dict[str, Any] = {"name": name}
            run["figures"] = {metric: vars(x) for metric, x in figures.items()}
            # The first model is what the others are compared with.
            if number:
                differences = self.differences[number - 1]
                run["differences"] = {metric: vars(x) for metric, x in differences.items()}
                if self.judged or self.same_terms:
                    better, worse = self.apart(number)
                    run["only_first_right" if self.judged else "first_better"] = len(better)
                    run["only_this_right" if self.judged else "this_better"] = len(worse)
            runs.append(run)
        return {
            "examples": len(self.examined[0].examples),
            "level": self.level,
            "resamples": self.resamples,
            "note": self.note,
            "runs": runs,
        }

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List the figures of all models, each with its bounds and its difference to the first."""
        rows = []
        for number, (name, figures) in enumerate(zip(self.names, self.figures, strict=True)):
            apart = self.differences[number - 1] if number else {}
            for metric, own in figures.items():
                row = {"model": name, "metric": metric, **vars(own)}
                if metric in apart:
                    row |= {"difference": apart[metric].value, "p": apart[metric].p}
                rows.append(row)
        return rows

    def __repr__(self) -> str:
        count = len(self.examined[0].examples)
        return f"<Compared {', '.join(map(in_line, self.names))} on {count:,} examples>"

    def rows(self) -> list[dict[str, Any]]:
        """List all examples with the answers of all models, as plain values for JSON."""
        first = self.examined[0]
        named = list(zip(self.names, self.examined, strict=True))
        kind, places = first.places()
        rows = []
        for number, place in enumerate(places):
            row: dict[str, Any] = {kind: place, **first.text(number)}
            row["truth"] = first.examples[number].grade.truth
            row["models"] = [_answer(name, examined, number) for name, examined in named]
            rows.append(row)
        return rows


def _answer(name: str, examined: Examined, number: int) -> dict[str, Any]:
    example = examined.examples[number]
    loss = example.mean_loss
    return {
        "name": name,
        "answer": example.grade.answer,
        "right": example.grade.right,
        "loss": loss if np.isfinite(loss) else None,
    }


def compare(
    names: Sequence[str],
    examined: Sequence[Examined],
    *,
    resamples: int = 5000,
    level: float = 0.95,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Compare models that answered the same examples.

    Intervals come from the percentile bootstrap (Efron 1979): examples are drawn with replacement,
    the same ones for all models. Significance comes from approximate randomization (Noreen 1989):
    for each example a coin decides whether two models exchange their answers; `p` is the share of
    such exchanges, the observed assignment included, with a difference at least as large. With more
    than two models, `p` is adjusted by Holm's method (1979).

    Args:
        names: names of the models, at least two.
        examined: the answers of each model to the same records.
        resamples: number of resamples, and of random exchanges.
        level: confidence level of the intervals.
        seed: seed of all random numbers.
        progress: called with the number of resamples done, and of all.

    Raises:
        RunError: the models have other tasks, labels or options, or read other examples, or none
            of their metrics can be compared.
    """
    check_tasks(names, [x.task for x in examined])
    _check_chunks(names, examined)
    figures, left_out = _comparable_figures(names, examined)
    # Progress counts the resamples, and the exchanges with each other model.
    count = resamples * len(examined)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, count)

    # Each model by itself: the percentiles of its metrics over the resamples.
    rng = np.random.default_rng(seed)
    draws = _bootstrap(examined, resamples, rng, tell)
    sides = [50 * (1 - level), 50 * (1 + level)]
    intervals, differences = [], []
    for own, drawn in zip(figures, draws, strict=True):
        bounds = {name: np.nanpercentile(drawn[name], sides) for name in own}
        intervals.append({n: Interval(float(own[n]), *map(float, bounds[n])) for n in own})
    # Each other model against the first: differences are paired, on the same resamples.
    for number in range(1, len(examined)):
        p_values = _randomization_test(examined[0], examined[number], resamples, rng)
        tell(resamples * (number + 1))
        own_differences = {}
        for name in (n for n in figures[0] if n in figures[number]):
            low, high = np.nanpercentile(draws[number][name] - draws[0][name], sides).tolist()
            value = float(figures[number][name] - figures[0][name])
            own_differences[name] = Difference(value, low, high, p_values[name])
        differences.append(own_differences)
    return Compared(
        names=tuple(names),
        examined=tuple(examined),
        level=level,
        resamples=resamples,
        figures=tuple(intervals),
        differences=tuple(_adjusted(differences)),
        left_out=left_out,
    )


def check_tasks(names: Sequence[str], tasks: Sequence[AnyTask]) -> None:
    """Check that models can be compared: at least two, of one task, with equal labels and options.

    Raises a RunError if not. Only options that decide how metrics are computed matter.
    """
    if len(tasks) < 2:
        raise RunError("one model alone cannot be compared", "Name two or more.")
    first = tasks[0]
    for name, other in zip(names[1:], tasks[1:], strict=True):
        if other.name != first.name:
            raise RunError(
                f"{names[0]} does '{first.name}', {name} does '{other.name}'",
                "Compare models of one task.",
            )
        # Equal labels in another order would mix up the classes of the figures.
        ours, theirs = (task.output_meaning().get("labels") for task in (first, other))
        if ours != theirs:
            raise RunError(
                f"{names[0]} and {name} have other labels: {_brief(ours)} and {_brief(theirs)}",
                "Compare models that were trained for the same labels.",
            )
        _check_options(names[0], first, name, other)


def _check_options(name: str, first: AnyTask, other_name: str, other: AnyTask) -> None:
    """Check that two tasks compute their metrics in the same way."""
    for option in first.metric_options:
        ours, theirs = (_as_set(task, option) for task in (first, other))
        if ours != theirs:
            raise RunError(
                f"{name} has task.{option}={ours}, {other_name} {theirs}: their metrics are "
                "computed in different ways",
                "Set it for all: "
                + " ".join(
                    f"--set {shlex.quote(f'{key}={_as_set(first, key)}')}"
                    for key in first.metric_options
                ),
            )


def _as_set(task: AnyTask, name: str) -> str:
    """Write the value of an option as it stands after `--set NAME=`."""
    value = task.options.in_full()[name]
    return value if isinstance(value, str) else json.dumps(value)


def _check_chunks(names: Sequence[str], examined: Sequence[Examined]) -> None:
    """Check that models read the data in the same chunks, so that their examples are pairs."""
    for name, other in zip(names[1:], examined[1:], strict=True):
        if _chunks(examined[0]) != _chunks(other):
            raise RunError(
                f"{names[0]} and {name} read the data in different chunks",
                "Compare models with the same tokenizer. The options that cut the data "
                "(task.max_length, task.stride, task.boundaries) can be set for all: "
                "--set max_length=N --set stride=N --set boundaries=true.",
            )


def _brief(labels: Any) -> str:
    text = ", ".join(map(str, labels or ["none"]))
    return text if len(text) <= 80 else text[:77] + "..."


def _chunks(examined: Examined) -> list[tuple[int, int]]:
    """Return what must be equal of each example: for blocks of text also how much is predicted."""
    blocks = isinstance(examined.task, ReadsStream)
    return [(e.record, e.terms if blocks else 0) for e in examined.examples]


def _bootstrap(
    examined: Sequence[Examined],
    resamples: int,
    rng: np.random.Generator,
    tell: Callable[[int], None],
) -> list[dict[str, Array]]:
    """Compute `[resamples]` values of each metric for each model, on examples drawn again."""
    count = len(examined[0].examples)
    totals: list[list[Array]] = [[] for _ in examined]
    # Metrics follow from sums over examples: a resample is how often each example counts.
    step = max(1, _DRAWS // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        # Offset the draws of each resample, so that a single bincount counts them all.
        which = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count)
        for sums, model in zip(totals, examined, strict=True):
            sums.append(times @ model.sums)
        tell(start + rows)
    return [
        model.task.figures(np.concatenate(sums))
        for model, sums in zip(examined, totals, strict=True)
    ]


def _randomization_test(
    first: Examined, other: Examined, tosses: int, rng: np.random.Generator
) -> dict[str, float]:
    """Compute p by metric: how often exchanged answers give a difference as large as observed."""
    ours, theirs = first.sums, other.sums
    moved, count = theirs - ours, len(ours)
    observed = _difference(first, other, ours.sum(0), theirs.sum(0))
    as_large = dict.fromkeys(observed, 1)  # the observed assignment counts too
    # In blocks of tosses, so that memory stays bounded.
    step = max(1, _DRAWS // count)
    for start in range(0, tosses, step):
        rows = min(step, tosses - start)
        # A random byte is eight coins.
        bits = np.unpackbits(
            rng.integers(256, size=(rows, -(-count // 8)), dtype=np.uint8), axis=1, count=count
        )
        exchanged = bits @ moved
        chance = _difference(first, other, ours.sum(0) + exchanged, theirs.sum(0) - exchanged)
        for name, values in chance.items():
            least = np.abs(observed[name]) - _ROUNDING
            as_large[name] += int((np.abs(values) >= least).sum())
    return {name: number / (tosses + 1) for name, number in as_large.items()}


def _difference(first: Examined, other: Examined, ours: Array, theirs: Array) -> dict[str, Array]:
    left, right = first.task.figures(ours), other.task.figures(theirs)
    return {name: right[name] - left[name] for name in left}


def _adjusted(differences: Sequence[Mapping[str, Difference]]) -> list[dict[str, Difference]]:
    """Adjust `p` for the number of models that are compared with the first, metric by metric."""
    adjusted: list[dict[str, Difference]] = [{} for _ in differences]
    for name in differences[0]:
        p_values = holm([own[name].p for own in differences])
        for own, new, p in zip(differences, adjusted, p_values, strict=True):
            new[name] = replace(own[name], p=p)
    return adjusted


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons (Holm 1979); the order of the values stays.

    The smallest of n values is multiplied by n, the next by n - 1, the largest by 1. Adjusted
    values are at most 1, and no hypothesis is rejected before a more significant one.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def _same_terms(examined: Sequence[Examined]) -> bool:
    """Tell whether the loss of each example has the same number of terms in all models."""
    terms = [[e.terms for e in x.examples] for x in examined]
    return all(other == terms[0] for other in terms[1:])


def _comparable_figures(
    names: Sequence[str], examined: Sequence[Examined]
) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """Select the metrics of each model that can be compared; return them and the names left out.

    A loss per token cannot, if the same text is cut into other tokens, and a metric that only some
    models have. It is an error if none are left.
    """
    figures = [_figures(x) for x in examined]
    if _same_terms(examined):
        # A loss with class weights, for example, is a metric of that model alone.
        every = dict.fromkeys(name for own in figures for name in own)
        left_out = tuple(name for name in every if any(name not in own for own in figures))
        return [{n: v for n, v in own.items() if n not in left_out} for own in figures], left_out
    # Leave out every metric that follows from the loss.
    of_losses = set().union(*map(_loss_figures, examined))
    left_out = tuple(name for name in figures[0] if name in of_losses)
    figures = [{n: v for n, v in own.items() if n not in of_losses} for own in figures]
    if not figures[0]:
        raise RunError(
            f"{' and '.join(names)} cut the same examples into different numbers of tokens, and "
            f"their metrics ({', '.join(left_out)}) are all per token",
            "Compare models with the same tokenizer and task.max_length.",
        )
    return figures, left_out


def _loss_figures(examined: Examined) -> set[str]:
    """Find the metrics that depend on the loss: those that change if the sum of losses does."""
    sums = np.repeat(examined.sums.sum(0)[None], 2, axis=0)
    sums[:, 0] = sums[:, 1] * (1, 2)
    return {name for name, x in examined.task.figures(sums).items() if x[0] != x[1]}


def _figures(examined: Examined) -> dict[str, float]:
    """Compute the metrics from sums over examples, without those that `evaluate` defines otherwise.

    The loss of masked tokens and next sentences is such a metric: a sum of two means.
    """
    figures = examined.task.figures(examined.sums.sum(0))
    known = examined.metrics
    return {
        name: float(value)
        for name, value in figures.items()
        if np.isclose(value, known[name], rtol=1e-3, atol=1e-6)
    }
