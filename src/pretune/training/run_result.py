"""What comes out of a run, as figures."""

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

from pretune import __version__
from pretune.models import ops


@dataclass(frozen=True)
class RunResult:
    """The outcome of a training.

    Attributes:
        folder: where everything is.
        seed: of the run.
        metrics: of the best model on the validation data; empty without such data.
        details: more of that evaluation, e.g. the confusion matrix.
        best_step: after how many updates it was best.
        steps: updates done.
        examples: sequences trained on, over all epochs.
        tokens: the same in tokens.
        seconds: spent in training steps.
        peak_memory_mb: the most memory the process (on CUDA: the device) held, in MiB.
        environment: versions and machine.
        rescues: what the guard did, one sentence each.
        stopped_early: whether it ended because nothing got better any more.
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

    @property
    def examples_per_second(self) -> float:
        """Sequences trained on in a second."""
        return self.examples / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is not finite is None, as JSON knows no NaN."""
        found: dict[str, Any] = _finite(asdict(self))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; a metric that is None was not finite.

        Raises:
            TypeError, AttributeError: it is something else.
        """
        made = cls(**values)
        metrics = {k: math.nan if v is None else float(v) for k, v in made.metrics.items()}
        return replace(made, metrics=metrics)


@dataclass(frozen=True)
class SeedsResult:
    """The outcomes of one recipe under several seeds."""

    runs: tuple[RunResult, ...]

    def summary(self) -> dict[str, tuple[float, float]]:
        """Mean and sample standard deviation of each metric."""
        found = {}
        for name in self.runs[0].metrics:
            values = [run.metrics[name] for run in self.runs]
            spread = 0.0 if len(values) == 1 else math.nan
            if len(values) > 1 and all(map(math.isfinite, values)):
                spread = statistics.stdev(values)
            found[name] = (statistics.mean(values), spread)
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        summary = {name: {"mean": mean, "sd": sd} for name, (mean, sd) in self.summary().items()}
        return {"summary": _finite(summary), "runs": [run.to_dict() for run in self.runs]}


def _finite(value: Any) -> Any:
    """Plain values, with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: of the device on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts what the parent held when it forked
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides the recipe."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "pretune": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": f"{device} ({name})",
        "threads": str(torch.get_num_threads()),
        "matmul": "oneDNN" if device.type == "cpu" and ops.uses_onednn() else "PyTorch",
    }
