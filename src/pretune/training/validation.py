"""Evaluating a model on features: the same code during training and after it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from pretune.data.batch import Features, PackedBatch
from pretune.inference.runtime import precision_context
from pretune.inference.strategies import strategy_for
from pretune.tasks.added_metrics import AllMetrics
from pretune.tasks.base import (
    AnyTask,
    Calibrated,
    drawn,
    lower_is_better,
    with_answers,
)
from pretune.training.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """How well a model does on some data.

    Attributes:
        metrics: the figures: `loss`, the means of its parts if it has any, the task's own.
        count: how many sequences were looked at.
        seconds: of wall-clock time.
        details: more than figures, e.g. the confusion matrix.
        truncated: how many sequences had text cut.
    """

    metrics: dict[str, float]
    count: int
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    truncated: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def better(metric: str, new: float, old: float) -> bool:
    """Whether a value of a metric beats another: NaN beats nothing, and everything beats NaN."""
    if math.isnan(new) or math.isnan(old):
        return not math.isnan(new)
    return new < old if lower_is_better(metric) else new > old


@torch.inference_mode()
def evaluate_features(
    task: AnyTask,
    model: nn.Module,
    features: Features,
    *,
    batch_tokens: int = 8192,
    device: torch.device | None = None,
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,
    world: World | None = None,
    calibrate: bool = False,
    watch: Callable[[PackedBatch, Any], None] | None = None,
) -> Evaluation:
    """Loss and metrics over all features; the model's mode is as it was afterwards.

    Several processes share the batches; each example counts once, whatever their number.

    Args:
        task: gives loss and metrics.
        model: already on `device`.
        features: with targets.
        batch_tokens: tokens at a time.
        device: where the model is; default CPU.
        precision: as in `precision_context`.
        progress: called with the number of features done.
        world: the processes that evaluate together; all get the whole result.
        watch: called with each batch and what the model gave for it.
        calibrate: let the task choose on these features what is chosen on validation data.
    """
    device, world = device or torch.device("cpu"), world or World()
    start = time.perf_counter()
    modes = [(module, module.training) for module in model.modules()]  # parts may be frozen
    model.eval()
    metrics = AllMetrics.of(task, features)
    sums: dict[str, float] = {"loss": 0.0}
    count, done = 0, 0
    strategy = strategy_for(task, model, features)
    shares = strategy.batches(features.lengths, batch_tokens, world.size)
    mine, most = shares[world.rank], len(shares[0])
    try:
        for turn in range(most):
            # A model that is spread over processes runs only in all of them at once.
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
            if watch is not None:
                watch(batch, outputs)
            sums["loss"] += float(loss.sum)
            for name, value in loss.parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
            count += loss.count
            done += len(which)
            if progress is not None:
                progress(done)
    finally:
        for module, training in modes:
            module.training = training
    if world.size > 1:
        metrics, sums, count = _together(
            world, AllMetrics.of(task, features), (metrics, sums, count)
        )
    if calibrate and isinstance(task, Calibrated):
        task.calibrate(metrics.own)
    means = {name: value / max(count, 1) for name, value in sums.items()}
    figures = {**means, **metrics.result()}
    seconds = time.perf_counter() - start
    return Evaluation(figures, len(features), seconds, metrics.details(), features.truncated)


def _together(
    world: World, metrics: AllMetrics, mine: tuple[AllMetrics, dict[str, float], int]
) -> tuple[AllMetrics, dict[str, float], int]:
    """What all processes found; a process may have had no batch, and so no parts of the loss."""
    sums: dict[str, float] = {}
    count = 0
    for more, more_sums, more_count in world.gather(mine):
        metrics.merge(more)
        sums = {k: sums.get(k, 0.0) + more_sums.get(k, 0.0) for k in {**sums, **more_sums}}
        count += more_count
    return metrics, sums, count
