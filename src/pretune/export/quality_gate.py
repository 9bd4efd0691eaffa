"""`pretune quantize`: the fastest model in 8 bits that is as good as the one in float32.

Which matrices are rounded is tried from safest to fastest. Calibration data tell how far rounding
moves the outputs of each matrix; the safest setting leaves the half that it moves farthest in
float32, the fastest none, and rounds the tables of embeddings too, which makes the file smaller.
Each setting answers the data, and is compared with float32 example by example.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle
from pretune.checkpoints.int8_weights import rounded
from pretune.data.records import Records
from pretune.errors import DataError, NotFiniteError, RunError
from pretune.evaluation.compare import Interval, compare
from pretune.evaluation.examine import Examined, examine
from pretune.experiments.costs import FLOAT
from pretune.inference.embed import Embedder
from pretune.models import kernels
from pretune.models.layers import Embedding, Linear
from pretune.models.packed import instruction_set, int8_rows, is_int8
from pretune.tasks.added_metrics import lower_is_better
from pretune.tasks.base import MakesExperience, WritesAnswers
from pretune.tasks.regression.regress import Regress
from pretune.version import __version__

#: Shares of the matrices that a setting leaves in float32, from safest to fastest.
SHARES = (0.5, 0.25, 0.1, 0.0)
#: Records that are enough to calibrate with.
CALIBRATION = 256
#: Tasks whose metrics go from 0 to 100; those of all others go to 1.
IN_PERCENT = ("answer", "translate", "summarize")
#: Scores agree if they differ by at most this share of the range of the true scores.
TOLERANCE = 0.02
#: Vectors agree from this cosine on.
COSINE = 0.99
#: Resamples of the paired bootstrap.
RESAMPLES = 2000


@dataclass(frozen=True)
class GateLimits:
    """What may be lost.

    Attributes:
        max_loss: points of the task's metric, of 100; for a metric that is better when lower, such
            as a loss, percent of its value.
        min_agreement: percent of the answers that must be those of float32.
    """

    max_loss: float = 0.5
    min_agreement: float = 98.5

    def __post_init__(self) -> None:
        for name, value, usual in (
            ("max-loss", self.max_loss, GateLimits.max_loss),
            ("min-agreement", self.min_agreement, GateLimits.min_agreement),
        ):
            if not 0 <= value <= 100:
                raise RunError(
                    f"--{name} {value:g}: must be from 0 to 100", f"The default is {usual:g}."
                )


@dataclass(frozen=True)
class Int8Setting:
    """Which weights are rounded."""

    name: str
    matrices: tuple[str, ...]  # names of the modules whose products are in 8 bits
    tables: tuple[str, ...]  # names of the tables of embeddings that are stored in 8 bits


@dataclass(frozen=True)
class TriedSetting:
    """A setting, and what became of the answers."""

    name: str
    matrices: int  # that are in 8 bits
    share: float  # of the multiplications with weights that are in 8 bits
    megabytes: float  # of the file's weights
    seconds: float  # that the data took
    metric: float | None  # None for vectors, which have none
    lost: float | None  # points of the metric, see `GateLimits`
    interval: Interval | None  # the change of the metric with the bounds of its 95 % interval
    p: float | None  # the probability of such a change by chance
    agreement: float | None  # percent of the answers; None for texts and language models
    reasons: tuple[str, ...]  # why it does not pass

    @property
    def passes(self) -> bool:
        """Whether it is within the limits."""
        return not self.reasons


@dataclass(frozen=True)
class GateResult:
    """All settings from safest to fastest, and the one that was taken."""

    metric: str | None
    value: float | None  # of float32
    megabytes: float  # of the weights in float32
    seconds: float  # that the data took in float32
    examples: int
    limits: GateLimits
    instructions: str
    tried: tuple[TriedSetting, ...]
    chosen: TriedSetting | None
    forced: bool

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    def record(self) -> dict[str, Any]:
        """What `config.json` says of the rounding."""
        chosen = self.chosen
        assert chosen is not None  # noqa: S101 - nothing is written without
        return {
            "bits": 8,
            "setting": chosen.name,
            "instructions": self.instructions,
            "examples": self.examples,
            "metric": self.metric,
            "float32": self.value,
            "int8": chosen.metric,
            "agreement": chosen.agreement,
            "forced": self.forced,
            "pretune_version": __version__,
        }


@dataclass(frozen=True)
class Answered:
    """The answers of a model, and the seconds they took."""

    seconds: float
    examined: Examined | None = None
    vectors: Any = None  # of texts, where a model has no task


@dataclass(frozen=True)
class SmallerForm:
    """Another form of a model that the gate judges, such as an export in 8 bits.

    Attributes:
        name: as the table shows it.
        bundle: answers as the model does.
        embedder: gives the vectors of texts, where the model has no task.
        batch_tokens: read at a time; fewer where it gives the logits of a whole vocabulary.
        engine: what computes it.
        matrices: how many matrices are in 8 bits.
        megabytes: of its files.
    """

    name: str
    bundle: Bundle
    engine: str
    matrices: int
    megabytes: float
    embedder: Embedder | None = None
    batch_tokens: int = 8192


@dataclass(frozen=True)
class _Sizes:
    """What a setting takes, as the table shows it."""

    name: str
    matrices: int
    share: float
    megabytes: float


def quantize(
    bundle: Bundle,
    data: Records | Sequence[str],
    limits: GateLimits,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GateResult:
    """Round a model's weights, in place, by the fastest setting that passes.

    Args:
        bundle: a model in float32; with a task, or for vectors.
        data: labelled records of the task; for a model without a task, texts.
        limits: what may be lost.
        force: take the safest setting where none passes.
        progress: called with the number of sequences done, and of all, in each pass over the data.

    Returns:
        the settings. Where none is `chosen`, the model is as it was.

    Raises:
        RunError: the model is in 8 bits already, has no matrix worth rounding, or its task is
            measured by what it writes in training.
    """
    _check(bundle)
    answer = partial(_answer, bundle, data, progress)
    base = answer()
    # How far rounding moves each matrix's outputs, on a part of the data.
    with _measured(bundle.model) as errors:
        few = data.head(CALIBRATION) if isinstance(data, Records) else data[:CALIBRATION]
        _answer(bundle, few, None)
    settings = gate_settings(bundle.model, errors)
    # Each setting on all of the data; the weights come back afterwards.
    tried = []
    for setting in settings:
        with _restored(bundle.model):
            round_weights(bundle.model, setting)
            tried.append(_judged(_sizes(bundle.model, setting), base, answer(), limits))
    passing = [number for number, own in enumerate(tried) if own.passes]
    number = passing[-1] if passing else 0 if force else None
    if number is not None:
        round_weights(bundle.model, settings[number])
    chosen = None if number is None else tried[number]
    return _result(bundle, base, len(data), limits, instruction_set(), tried, chosen)


def judge(
    bundle: Bundle,
    form: SmallerForm,
    data: Records | Sequence[str],
    limits: GateLimits,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GateResult:
    """Compare a smaller form of a model with the model; both answer the same data.

    Args:
        bundle: the model.
        form: what is to be judged.
        data: labelled records of the task; for a model without a task, texts.
        limits: what may be lost.
        force: choose the form even if it does not pass.
        progress: called with the number of sequences done, and of all, in both passes.

    Raises:
        RunError: the task is measured by what the model writes in training.
    """
    check_measurable(bundle)
    answer = partial(_answer, data=data, progress=progress, batch_tokens=form.batch_tokens)
    base, own = answer(bundle), answer(form.bundle, embedder=form.embedder)
    tried = _judged(_Sizes(form.name, form.matrices, 1.0, form.megabytes), base, own, limits)
    chosen = tried if tried.passes or force else None
    return _result(bundle, base, len(data), limits, form.engine, [tried], chosen)


def _result(
    bundle: Bundle,
    base: Answered,
    examples: int,
    limits: GateLimits,
    instructions: str,
    tried: Sequence[TriedSetting],
    chosen: TriedSetting | None,
) -> GateResult:
    return GateResult(
        *_measure(base),
        megabytes=sum(p.numel() for p in bundle.model.parameters()) * FLOAT / 1e6,
        seconds=base.seconds,
        examples=examples,
        limits=limits,
        instructions=instructions,
        tried=tuple(tried),
        chosen=chosen,
        forced=chosen is not None and not chosen.passes,
    )


class GateError(RunError):
    """No setting is within the limits; `result` tells how far each is from them."""

    def __init__(self, result: GateResult) -> None:
        super().__init__(
            "no setting is within the limits",
            "Allow more (--max-loss, --min-agreement), or take the safest all the same: --force.",
        )
        self.result = result


def _check(bundle: Bundle) -> None:
    if is_int8(bundle.model):
        raise RunError(
            f"{bundle.folder}: its weights are in 8 bits already",
            "Quantize the model that it was made of.",
        )
    check_measurable(bundle)
    if not candidates(bundle.model):
        raise RunError(
            "the matrices of this model are so small that 8 bits make nothing faster",
            "Use it as it is.",
        )


def check_measurable(bundle: Bundle) -> None:
    """Refuse a model whose answers say too little about its quality.

    Raises:
        RunError: its task is measured by what it writes in training.
    """
    if isinstance(bundle.task, MakesExperience):
        raise RunError(
            f"the task {bundle.task.name} is measured by a reward, which says too little here",
            "Save the policy as a model of another task first, such as instruct.",
        )


def candidates(model: nn.Module) -> dict[str, Linear]:
    """The matrices that can be multiplied in 8 bits, by name: those that are not small."""
    parts = {name: part for name, part in model.named_modules() if isinstance(part, Linear)}
    return {n: part for n, part in parts.items() if part.weight.numel() >= kernels.SMALLEST}


def gate_settings(model: nn.Module, errors: dict[str, float]) -> list[Int8Setting]:
    """The settings from safest to fastest: each rounds all that the one before rounds, and more."""
    names = sorted(errors, key=errors.__getitem__)
    tables = [name for name, part in model.named_modules() if isinstance(part, Embedding)]
    settings: list[Int8Setting] = []
    for share in SHARES:
        count = len(names) - round(share * len(names))
        if count and (not settings or count > len(settings[-1].matrices)):
            left = len(names) - count
            what = f"all but {left} of {len(names)} matrices" if left else "all matrices"
            settings.append(Int8Setting(what, tuple(names[:count]), ()))
    last = Int8Setting("all matrices, tables", tuple(names), tuple(tables))
    return [*settings, last]


@torch.no_grad()
def round_weights(model: nn.Module, setting: Int8Setting) -> None:
    """Round the weights of a setting to what 8 bits hold, in place, and mark their layers."""
    for name in (*setting.matrices, *setting.tables):
        part = model.get_submodule(name)
        assert isinstance(part, Linear | Embedding)  # noqa: S101 - for the type checker
        integers, scale = rounded(part.weight)
        part.weight = nn.Parameter(integers * scale, requires_grad=part.weight.requires_grad)
        part.int8 = True


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Context after which weights and marks are as they were."""
    parts = [part for part in model.modules() if isinstance(part, Linear | Embedding)]
    weights = [part.weight for part in parts]
    try:
        yield
    finally:
        for part, weight in zip(parts, weights, strict=True):
            part.weight = weight
            part.__dict__.pop("int8", None)


@contextmanager
def _measured(model: nn.Module) -> Iterator[dict[str, float]]:
    """Context in which the error of each matrix is measured; complete when the context ends.

    The error is the norm of what rounding changes of the outputs, as a share of their norm; of a
    matrix that the data do not reach, of the weight.
    """
    errors: dict[str, float] = {}
    sums = {name: [0.0, 0.0] for name in candidates(model)}

    def watch(name: str, linear: Linear, x: Tensor, outputs: slice, **options: Any) -> Tensor:
        weight = linear.weight[outputs]
        integers, scale = rounded(weight)
        rows, size = int8_rows(x.float())
        exact = x.float() @ weight.t()
        moved = (rows * size) @ (integers * scale).t() - exact
        sums[name][0] += float(moved.square().sum())
        sums[name][1] += float(exact.square().sum())
        return Linear.part(linear, x, outputs, **options)

    parts = candidates(model)
    for name, linear in parts.items():
        linear.__dict__["part"] = partial(watch, name, linear)
    try:
        yield errors
    finally:
        for name, linear in parts.items():
            del linear.__dict__["part"]
            moved, whole = sums[name]
            if not whole:
                integers, scale = rounded(linear.weight.detach())
                moved = float((integers * scale - linear.weight.detach()).square().sum())
                whole = float(linear.weight.detach().square().sum())
            errors[name] = (moved / whole) ** 0.5 if whole else 0.0


def _answer(
    bundle: Bundle,
    data: Records | Sequence[str],
    progress: Callable[[int, int], None] | None,
    embedder: Embedder | None = None,
    batch_tokens: int = 8192,
) -> Answered:
    begun = time.perf_counter()
    if isinstance(data, Records):
        how: dict[str, Any] = {"device": "cpu", "precision": "float32"}
        examined = examine(bundle, data, batch_tokens=batch_tokens, progress=progress, **how)
        if any(math.isnan(example.loss) for example in examined.examples):
            raise NotFiniteError
        return Answered(time.perf_counter() - begun, examined)
    if not data:
        raise DataError("no texts to compare vectors of", "Name other data.")
    embedder = embedder or Embedder(bundle, device="cpu", normalize=True)
    return Answered(time.perf_counter() - begun, vectors=embedder.embed(data))


def _measure(answered: Answered) -> tuple[str | None, float | None]:
    """The metric that decides, and its value; None for vectors."""
    if answered.examined is None:
        return None, None
    name = answered.examined.task.best_by
    return name, answered.examined.metrics[name]


def points_lost(task: str, metric: str, before: float, after: float) -> float:
    """How much worse a metric became: points of 100, or percent where lower is better."""
    if lower_is_better(metric):
        if not before:  # whatever is added to nothing is too much
            return 0.0 if after <= 0 else math.inf
        return 100 * (after - before) / abs(before)
    return (before - after) * (1 if task in IN_PERCENT else 100)


def _judged(sizes: _Sizes, base: Answered, own: Answered, limits: GateLimits) -> TriedSetting:
    """Compare the answers of a setting with those of float32."""
    # The metric: what was lost of it, and whether that is more than luck.
    (name, before), (_, after) = _measure(base), _measure(own)
    lost: float | None = None
    interval: Interval | None = None
    p: float | None = None
    if base.examined is not None and own.examined is not None and name and after is not None:
        lost = points_lost(base.examined.task.name, name, before or 0.0, after)
        pair = (base.examined, own.examined)
        difference = compare(("float32", "int8"), pair, resamples=RESAMPLES).differences[0]
        if name in difference:
            change = difference[name]
            interval, p = Interval(change.value, change.low, change.high), change.p
    agreement = _agreement(base, own)
    # What is not within the limits; a figure that is not a number never is.
    reasons = []
    if lost is not None and not lost <= limits.max_loss:
        reasons.append(f"{name} {lost:.2f} worse, at most {limits.max_loss:g}")
    if agreement is not None and not agreement >= limits.min_agreement:
        reasons.append(f"{agreement:.2f} % agree, at least {limits.min_agreement:g}")
    return TriedSetting(
        name=sizes.name,
        matrices=sizes.matrices,
        share=sizes.share,
        megabytes=sizes.megabytes,
        seconds=own.seconds,
        metric=after,
        lost=lost,
        interval=interval,
        p=p,
        agreement=agreement,
        reasons=tuple(reasons),
    )


def _sizes(model: nn.Module, setting: Int8Setting) -> _Sizes:
    """What a setting takes: `share` of the matrices' weights, and `megabytes` of all weights."""
    parts = dict(model.named_modules())
    every = sum(parameter.numel() for parameter in model.parameters())
    matrices = sum(part.weight.numel() for part in parts.values() if isinstance(part, Linear))
    weights = [parts[name].get_parameter("weight") for name in setting.matrices]
    tables = [parts[name].get_parameter("weight") for name in setting.tables]
    small = sum(weight.numel() for weight in (*weights, *tables))
    scales = sum(len(weight) for weight in (*weights, *tables))
    share = sum(weight.numel() for weight in weights) / matrices
    megabytes = (small + (every - small + scales) * FLOAT) / 1e6
    return _Sizes(setting.name, len(setting.matrices), share, megabytes)


def _agreement(base: Answered, own: Answered) -> float | None:
    """Percent of the answers that are the same; None where that is not asked for."""
    if base.examined is None or own.examined is None:
        # Of vectors of length 1 the sum of the products is the cosine.
        return 100 * float(np.mean((base.vectors * own.vectors).sum(1) >= COSINE))
    task = base.examined.task
    if isinstance(task, WritesAnswers) or lower_is_better(task.best_by):
        return None
    # Scores are compared as numbers, choices by their numbers, all else as text.
    grades = [
        (a.grade, b.grade)
        for a, b in zip(base.examined.examples, own.examined.examples, strict=True)
    ]
    if isinstance(task, Regress):
        truths = [float(a.truth) for a, _ in grades]
        limit = TOLERANCE * (max(truths) - min(truths))
        same = [abs(float(a.answer) - float(b.answer)) <= limit + 1e-9 for a, b in grades]
    elif all(a.decisions and a.decisions[0].distribution for a, _ in grades):
        pairs = [pair for a, b in grades for pair in zip(a.decisions, b.decisions, strict=True)]
        same = [x.predicted == y.predicted for x, y in pairs]
    else:
        same = [a.answer == b.answer for a, b in grades]
    return 100 * sum(same) / len(same)
