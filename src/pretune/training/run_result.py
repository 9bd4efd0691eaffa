"""The figures that come out of a run."""

from __future__ import annotations

import math
import platform
import resource
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from pretune.models import kernels
from pretune.version import __version__


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run.

    Attributes:
        folder: the run folder.
        seed: of the run.
        metrics: of the best model on the validation data; empty without such data.
        details: more about that evaluation, e.g. the confusion matrix.
        best_step: the update after which the model was best.
        steps: updates done.
        examples: sequences trained on, over all epochs.
        tokens: tokens trained on, over all epochs.
        seconds: spent in updates, without evaluation and saving.
        peak_memory_mb: the most memory the process (on CUDA: the device) held, in MiB.
        environment: versions and machine.
        rescues: what the guard did, one sentence per recovery.
        stopped_early: whether training ended because nothing got better any more.
        stopped_on: the figure that ended the training (`train.stop_on`): `figure`, its `value`, the
            `limit` that it passed, and the `step`; None if none did.
        warnings: what looked wrong with the training, one sentence each.
    """

    folder: str
    seed: int
    metrics: dict[str, float]
    details: dict[str, Any]
    best_step: int | None
    steps: int
    examples: int
    tokens: int
    seconds: float
    peak_memory_mb: float
    environment: dict[str, str] = field(default_factory=dict)
    rescues: list[str] = field(default_factory=list)
    stopped_early: bool = False
    stopped_on: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def examples_per_second(self) -> float:
        """Sequences trained on per second."""
        return self.examples / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; numbers that are not finite are None, as JSON has no NaN."""
        values: dict[str, Any] = _finite(asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a result from what `to_dict` gave; a metric of None becomes NaN."""
        made = cls(**values)
        metrics = {k: math.nan if v is None else float(v) for k, v in made.metrics.items()}
        return replace(made, metrics=metrics)


@dataclass(frozen=True)
class SeedsResult:
    """The outcomes of one recipe under several seeds."""

    runs: tuple[RunResult, ...]

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and sample standard deviation of each metric."""
        summary = {}
        for name in self.runs[0].metrics:
            values = [run.metrics[name] for run in self.runs]
            spread = 0.0 if len(values) == 1 else math.nan
            if len(values) > 1 and all(map(math.isfinite, values)):
                spread = statistics.stdev(values)
            summary[name] = (statistics.mean(values), spread)
        return summary

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        summary = {name: {"mean": mean, "sd": sd} for name, (mean, sd) in self.summary().items()}
        return {"summary": _finite(summary), "runs": [run.to_dict() for run in self.runs]}


def _finite(value: Any) -> Any:
    """The same values with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: on CUDA by the device, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it forked
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on in addition to the recipe: versions and machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "pretune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "matmul": "PyTorch" if device.type != "cpu" else kernels.current().summary(),
    }
