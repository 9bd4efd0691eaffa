"""The figures that come out of a run."""

from __future__ import annotations

import math
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

import torch
from typing_extensions import override

from pretune.host import peak_memory
from pretune.models import kernels
from pretune.text.notebook import Displayed
from pretune.text.terminal import in_line
from pretune.version import __version__


@dataclass(frozen=True, repr=False)
class RunResult(Displayed):
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
        stopped_early: whether training ended because nothing got better any more, or because a
            callback asked for it.
        stopped_on: the figure that ended the training (`train.stop_on`): `figure`, its `value`, the
            `limit` that it passed, and the `step`; None if none did.
        warnings: what looked wrong with the training, one sentence each.
        data: of `train` and `validation` the source, the number of records, and how many were left
            out (`data.errors`) or skipped, with the reasons of the first of them.
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
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def examples_per_second(self) -> float:
        """Sequences trained on per second."""
        return self.examples / max(self.seconds, 1e-9)

    @override
    def table_rows(self) -> list[dict[str, Any]]:
        """List one row: folder, seed, figures and costs; tables of several runs can be joined."""
        costs = ("best_step", "steps", "examples", "tokens", "seconds", "peak_memory_mb")
        own = {name: getattr(self, name) for name in costs}
        return [{"folder": self.folder, "seed": self.seed, **self.metrics, **own}]

    def __repr__(self) -> str:
        figures = "".join(f", {name} {value:.4f}" for name, value in self.metrics.items())
        return f"<RunResult {in_line(self.folder)}: {self.steps:,} updates{figures}>"

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
class SeveralRuns:
    """The outcomes of one recipe under several seeds, or on several parts of its data.

    Attributes:
        runs: in the order of their numbers.
        kind: what differs between them: `seed` or `fold`.
    """

    runs: tuple[RunResult, ...]
    kind: Literal["seed", "fold"] = "seed"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The seed of each run, or the number of its part from 1."""
        if self.kind == "seed":
            return tuple(run.seed for run in self.runs)
        return tuple(range(1, len(self.runs) + 1))

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
    return peak_memory() / 2**20


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
