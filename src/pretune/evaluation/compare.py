"""Models side by side on the same examples: how sure their figures are, and their differences.

A figure on 400 examples is a draw: other 400 examples would have given another. The interval says
how far apart such draws are; the test, how often two models that are equally good would differ as
much as these two do by the draw alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pretune.data.arrays import Array
from pretune.errors import RunError
from pretune.evaluation.comparable import comparable_figures, same_terms
from pretune.evaluation.examine import Examined
from pretune.tasks.base import AnyTask, ReadsStream

#: Random numbers drawn at a time: 8 bytes each.
_DRAWS = 2_000_000
#: A difference by chance counts as one as large as the true one though rounding made it smaller.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Interval:
    """A figure, or a difference of two, and between which bounds it lies."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Interval):
    """What a model has more than the first one.

    Attributes:
        p: how often a difference at least as large would come of chance alone; with more than two
            models Holm's, for all that are compared with the first in this metric.
    """

    p: float


@dataclass(frozen=True)
class Compared:
    """Some models on the same data.

    Attributes:
        names: of the models; the first is what the others are compared with.
        examined: what each did.
        level: of the intervals, e.g. 0.95.
        resamples: how many draws they are from.
        figures: for each model, by metric.
        differences: for each model but the first, by metric.
        left_out: metrics that are not to be compared.
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
        """Whether losses are means over as many terms, so that they can be compared."""
        return same_terms(self.examined)

    @property
    def note(self) -> str | None:
        """What people must know of the figures, in one sentence."""
        if not self.left_out:
            return None
        return (
            f"Not compared: {', '.join(self.left_out)}, as the models cut the same examples into "
            "different numbers of tokens or other terms."
        )

    @cached_property
    def judged(self) -> bool:
        """Whether answers are right or wrong at all."""
        return any(e.grade.right is not None for x in self.examined for e in x.examples)

    def apart(self, other: int) -> tuple[list[int], list[int]]:
        """The examples that only the first gets right, and those that only another does.

        Those with the largest difference of losses come first. Where nothing is right or wrong:
        those that the first foretells better, and those that the other does. Where losses are not
        to be compared they count as the same.
        """
        first, second = self.examined[0].examples, self.examined[other].examples
        gains = np.zeros(len(first))
        if self.same_terms:
            pairs = zip(first, second, strict=True)
            gains = np.nan_to_num([b.mean_loss - a.mean_loss for a, b in pairs], nan=0.0)
        only = gains
        if self.judged:
            pairs = zip(first, second, strict=True)
            only = np.array([bool(a.grade.right) - bool(b.grade.right) for a, b in pairs])
        order = np.argsort(-np.abs(gains), kind="stable").tolist()
        return [i for i in order if only[i] > 0], [i for i in order if only[i] < 0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        runs = []
        for number, (name, figures) in enumerate(zip(self.names, self.figures, strict=True)):
            found: dict[str, Any] = {"name": name}
            found["figures"] = {metric: vars(x) for metric, x in figures.items()}
            if number:
                differences = self.differences[number - 1]
                found["differences"] = {metric: vars(x) for metric, x in differences.items()}
                if self.judged or self.same_terms:
                    better, worse = self.apart(number)
                    found["only_first_right" if self.judged else "first_better"] = len(better)
                    found["only_this_right" if self.judged else "this_better"] = len(worse)
            runs.append(found)
        return {
            "examples": len(self.examined[0].examples),
            "level": self.level,
            "resamples": self.resamples,
            "note": self.note,
            "runs": runs,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every example with what each model made of it, JSON-ready."""
        first = self.examined[0]
        kind, places = first.places()
        rows = []
        for number, place in enumerate(places):
            found: dict[str, Any] = {kind: place, **first.text(number)}
            found["truth"] = first.examples[number].grade.truth
            found["models"] = [_answer(name, x, number) for name, x in self._named()]
            rows.append(found)
        return rows

    def _named(self) -> list[tuple[str, Examined]]:
        return list(zip(self.names, self.examined, strict=True))


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
    """Compare models that were asked about the same examples.

    Intervals are those of the percentile bootstrap (Efron 1979): the examples are drawn anew, with
    replacement, the same ones for all models. The test is that of approximate randomization
    (Noreen 1989): the answers of two models are exchanged, example by example, by the toss of a
    coin; `p` is the share of tosses, the true one among them, that come to a difference at least as
    large. With more than two models it is Holm's (1979).

    Args:
        names: of the models, at least two.
        examined: what each did on the same records.
        resamples: draws, and tosses.
        level: of the intervals.
        seed: of all draws.
        progress: called with the number of draws done, and of all.

    Raises:
        RunError: they have not done the same, or not the same examples, or no figure of theirs can
            be compared.
    """
    check_tasks(names, [x.task for x in examined])
    check_pieces(names, examined)
    figures, left_out = comparable_figures(names, examined)
    count = resamples * len(examined)

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, count)

    rng = np.random.default_rng(seed)
    draws = _bootstrap(examined, resamples, rng, tell)
    sides = [50 * (1 - level), 50 * (1 + level)]
    intervals, differences = [], []
    for own, drawn in zip(figures, draws, strict=True):
        bounds = {name: np.nanpercentile(drawn[name], sides) for name in own}
        intervals.append({n: Interval(float(own[n]), *map(float, bounds[n])) for n in own})
    for number in range(1, len(examined)):
        chances = _chances(examined[0], examined[number], resamples, rng)
        tell(resamples * (number + 1))
        found = {}
        for name in (n for n in figures[0] if n in figures[number]):
            p = chances[name]
            low, high = np.nanpercentile(draws[number][name] - draws[0][name], sides).tolist()
            value = float(figures[number][name] - figures[0][name])
            found[name] = Difference(value, low, high, p)
        differences.append(found)
    return Compared(
        names=tuple(names),
        examined=tuple(examined),
        level=level,
        resamples=resamples,
        figures=tuple(intervals),
        differences=tuple(_holm(differences)),
        left_out=left_out,
    )


def check_tasks(names: Sequence[str], tasks: Sequence[AnyTask]) -> None:
    """See whether models can be compared at all.

    Raises:
        RunError: there is but one, or they have another task, other labels, or other options for
            how figures are made.
    """
    if len(tasks) < 2:
        raise RunError("one model has nothing to be compared with", "Name two or more.")
    first = tasks[0]
    for name, other in zip(names[1:], tasks[1:], strict=True):
        if other.name != first.name:
            raise RunError(
                f"{names[0]} does '{first.name}', {name} does '{other.name}'",
                "Compare models of one task.",
            )
        ours, theirs = (task.output_meaning().get("labels") for task in (first, other))
        if ours != theirs:
            raise RunError(
                f"{names[0]} and {name} have other labels: {_brief(ours)} and {_brief(theirs)}",
                "Compare models that were trained for the same labels.",
            )
        _check_options(names[0], first, name, other)


def _check_options(name: str, first: AnyTask, other_name: str, other: AnyTask) -> None:
    for option in first.metric_options:
        ours, theirs = (_as_set(getattr(task.options, option)) for task in (first, other))
        if ours != theirs:
            chosen = ((key, getattr(first.options, key)) for key in first.metric_options)
            raise RunError(
                f"{name} has task.{option}={ours}, {other_name} {theirs}: their figures are not "
                "made alike",
                "Set it for all: " + " ".join(f"--set {k}={_as_set(v)}" for k, v in chosen),
            )


def _as_set(value: Any) -> str:
    """As it is written after `--set NAME=`."""
    return value if isinstance(value, str) else json.dumps(value)


def check_pieces(names: Sequence[str], examined: Sequence[Examined]) -> None:
    """See whether models were asked about the same.

    Raises:
        RunError: their examples are no pairs.
    """
    for name, other in zip(names[1:], examined[1:], strict=True):
        if _pieces(examined[0]) != _pieces(other):
            raise RunError(
                f"{names[0]} and {name} read the data in other pieces",
                "Compare models with the same tokenizer. The options that cut the data "
                "(task.max_length, task.stride, task.boundaries) can be set for all: "
                "--set max_length=N --set stride=N --set boundaries=true.",
            )


def _brief(labels: Any) -> str:
    text = ", ".join(map(str, labels or ["none"]))
    return text if len(text) <= 80 else text[:77] + "..."


def _pieces(examined: Examined) -> list[tuple[int, int]]:
    """What must be the same of each example: of a block of text also how much of it is foretold."""
    blocks = isinstance(examined.task, ReadsStream)
    return [(e.record, e.terms if blocks else 0) for e in examined.examples]


def _bootstrap(
    examined: Sequence[Examined],
    resamples: int,
    rng: np.random.Generator,
    tell: Callable[[int], None],
) -> list[dict[str, Array]]:
    """For each model, by metric, `[resamples]` figures of examples drawn with replacement."""
    count = len(examined[0].examples)
    found: list[list[Array]] = [[] for _ in examined]
    step = max(1, _DRAWS // count)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        which = rng.integers(count, size=(rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(which.ravel(), minlength=rows * count).reshape(rows, count)
        for sums, one in zip(found, examined, strict=True):
            sums.append(times @ one.sums)
        tell(start + rows)
    return [
        one.task.figures(np.concatenate(sums)) for one, sums in zip(examined, found, strict=True)
    ]


def _chances(
    first: Examined, other: Examined, tosses: int, rng: np.random.Generator
) -> dict[str, float]:
    """By metric, how often exchanged answers come to a difference as large as the true one."""
    ours, theirs = first.sums, other.sums
    moved, count = theirs - ours, len(ours)
    true = _apart(first, other, ours.sum(0), theirs.sum(0))
    as_large = dict.fromkeys(true, 1)  # the true assignment is one of all
    step = max(1, _DRAWS // count)
    for start in range(0, tosses, step):
        rows = min(step, tosses - start)
        # Coins are packed in bytes: eight of them a draw.
        bits = np.unpackbits(
            rng.integers(256, size=(rows, -(-count // 8)), dtype=np.uint8), axis=1, count=count
        )
        exchanged = bits @ moved
        apart = _apart(first, other, ours.sum(0) + exchanged, theirs.sum(0) - exchanged)
        for name, values in apart.items():
            least = np.abs(true[name]) - _ROUNDING
            as_large[name] += int((np.abs(values) >= least).sum())
    return {name: number / (tosses + 1) for name, number in as_large.items()}


def _apart(first: Examined, other: Examined, ours: Array, theirs: Array) -> dict[str, Array]:
    left, right = first.task.figures(ours), other.task.figures(theirs)
    return {name: right[name] - left[name] for name in left}


def _holm(differences: list[dict[str, Difference]]) -> list[dict[str, Difference]]:
    """With `p` for all models that are compared with the first (Holm 1979), metric by metric."""
    adjusted: list[dict[str, Difference]] = [{} for _ in differences]
    for name in differences[0]:
        order = sorted(range(len(differences)), key=lambda i: differences[i][name].p)
        largest = 0.0
        for rank, i in enumerate(order):
            one = differences[i][name]
            largest = max(largest, min(1.0, one.p * (len(order) - rank)))
            adjusted[i][name] = Difference(one.value, one.low, one.high, largest)
    return adjusted
