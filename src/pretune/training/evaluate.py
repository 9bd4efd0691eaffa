"""Evaluating a model on features: the same code during training and after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from pretune.data import FeatureSet, batches_by_length
from pretune.errors import RunError
from pretune.tasks import AnyTask


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


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` takes a GPU where there is one.

    Raises:
        RunError: this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise RunError(
            f"device '{name}' cannot be used: {reason}", "Use device auto or cpu."
        ) from None
    return device


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """bf16 autocast, or nothing. `auto`: bf16 on CUDA, float32 elsewhere."""
    if precision == "bf16" or (precision == "auto" and device.type == "cuda"):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@torch.inference_mode()
def evaluate_features(
    task: AnyTask,
    model: nn.Module,
    features: FeatureSet,
    *,
    batch_tokens: int = 8192,
    device: torch.device | None = None,
    precision: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Loss and metrics over all features; the model's mode is as it was afterwards.

    Args:
        task: gives loss and metrics.
        model: already on `device`.
        features: with targets.
        batch_tokens: tokens at a time.
        device: where the model is; default CPU.
        precision: as in `precision_context`.
        progress: called with the number of features done.
    """
    device = device or torch.device("cpu")
    start = time.perf_counter()
    modes = [(module, module.training) for module in model.modules()]  # parts may be frozen
    model.eval()
    metrics = task.metrics()
    total, count, done = 0.0, 0, 0
    parts: dict[str, float] = {}
    try:
        for which in batches_by_length(features.lengths, batch_tokens):
            batch = features.batch(which).to(device)
            with precision_context(device, precision):
                outputs = task.forward(model, batch)
                loss = task.loss(outputs, batch)
            metrics.update(outputs, batch)
            total += float(loss.sum)
            count += loss.count
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + float(value)
            done += len(which)
            if progress is not None:
                progress(done)
    finally:
        for module, training in modes:
            module.training = training
    means = {name: value / max(count, 1) for name, value in {"loss": total, **parts}.items()}
    figures = {**means, **metrics.result()}
    seconds = time.perf_counter() - start
    return Evaluation(figures, len(features), seconds, metrics.details(), features.truncated)
