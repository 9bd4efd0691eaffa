"""Evaluating a model on features: the same code during and after training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from typing_extensions import override

from pretune.data.batch import Features, PackedBatch
from pretune.inference.runtime import evaluation_mode, precision_context
from pretune.inference.strategies import strategy_for
from pretune.tasks.added_metrics import AllMetrics, lower_is_better
from pretune.tasks.base import AnyTask, Calibrated, Loss, drawn, with_answers
from pretune.text.notebook import Displayed
from pretune.training.distributed import World, is_sharded


@dataclass(frozen=True, repr=False)
class Evaluation(Displayed):
    """How well a model does on some data.

    Attributes:
        metrics: `loss`, the means of its parts if it has any, and the task's own figures.
        count: number of sequences evaluated.
        seconds: of wall-clock time.
        details: more than figures, e.g. the confusion matrix.
        truncated: number of sequences whose text was truncated.
    """

    metrics: dict[str, float]
    count: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List one row: the figures, and of how many sequences; tables of several can be joined."""
        return [{**self.metrics, "count": self.count, "seconds": self.seconds}]

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        return f"<Evaluation of {self.count:,} sequences: {figures}>"


def better(metric: str, new: float, old: float) -> bool:
    """Whether one value of a metric beats another; NaN beats nothing, and all else beats it."""
    if math.isnan(new) or math.isnan(old):
        return not math.isnan(new)
    return new < old if lower_is_better(metric) else new > old


def better_by(metric: str, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
    """Whether one evaluation's figures are better than another's by a metric."""
    return better(metric, new[metric], old[metric])


def beats(metric: str, new: Mapping[str, float], old: Mapping[str, float]) -> bool:
    """Whether one evaluation's figures beat another's: by a metric, and of equals by the loss.

    Few validation examples are soon all answered rightly, long before the model is sure of them.
    """
    if new[metric] == old[metric] and "loss" in new and "loss" in old:
        metric = "loss"
    return better_by(metric, new, old)


@torch.no_grad()
def evaluate_features(
    task: AnyTask,
    model: nn.Module,
    features: Features,
    *,
    batch_tokens: int = 8192,  # at a time
    device: torch.device | None = None,
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,  # called with the number of features done
    world: World | None = None,  # all processes get the whole result
    calibrate: bool = False,  # choose here what is chosen on validation data
    # Called with each batch and the model's outputs.
    watch: Callable[[PackedBatch, Any], None] | None = None,
) -> Evaluation:
    """Compute loss and metrics over all features; the model's mode is the same afterwards.

    Several processes share the batches; each example counts once, whatever their number.
    """
    device, world = device or torch.device("cpu"), world or World()
    start = time.perf_counter()
    metrics, sums, done = AllMetrics.of(task, features), _LossSums(), 0
    strategy = strategy_for(task, model, features)
    shares = strategy.batches(features.lengths, batch_tokens, world.size)
    mine, rounds = shares[world.rank], len(shares[0])
    # Tensors that a sharded model gathers for the first time stay with it, and training needs them.
    # Not `inference_mode(False)` for a shard, which turns gradients on again.
    inference = nullcontext() if is_sharded(model) else torch.inference_mode()
    with evaluation_mode(model), inference:
        for turn in range(rounds):
            # A sharded model runs only in all processes at once: one that has no batch left takes
            # part with a stand-in, which counts for nothing.
            real = turn < len(mine)
            which = mine[turn] if real else np.zeros(1, dtype=np.int64)
            batch = drawn(task, features.batch(which), seed=0, epoch=-1).to(device)
            with precision_context(device, precision):
                outputs = strategy.forward(model, batch)
                strategy.commit()
                loss = task.loss(outputs, batch)
                if not real:
                    continue
                outputs = with_answers(task, model, outputs, batch)
            metrics.update(outputs, batch)
            sums.add(loss)
            if watch is not None:
                watch(batch, outputs)
            done += len(which)
            if progress is not None:
                progress(done)
    # Put together what all processes computed.
    if world.size > 1:
        everything = world.gather((metrics, sums))
        metrics, sums = AllMetrics.of(task, features), _LossSums()
        for other_metrics, other_sums in everything:
            metrics.merge(other_metrics)
            sums.merge(other_sums)
    if calibrate and isinstance(task, Calibrated):
        task.calibrate(metrics.own)
    figures = {**sums.means(), **metrics.result()}
    seconds = time.perf_counter() - start
    return Evaluation(figures, len(features), seconds, metrics.details(), features.truncated)


@dataclass
class _LossSums:
    """The sums of the loss and of its parts, and their common count."""

    sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0})
    count: int = 0

    def add(self, loss: Loss) -> None:
        """Take in a batch."""
        parts = {name: float(value) for name, value in loss.parts.items()}
        self.merge(_LossSums({"loss": float(loss.sum), **parts}, loss.count))

    def merge(self, other: _LossSums) -> None:
        """Take in another process's; one that had no batch has no parts."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += other.count

    def means(self) -> dict[str, float]:
        """By name."""
        return {name: value / max(self.count, 1) for name, value in self.sums.items()}
