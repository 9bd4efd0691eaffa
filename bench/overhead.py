"""What safety costs: checkpoints, guards and logs, as a share of an update.

    PRETUNE_DATA=FOLDER python bench/overhead.py [--epochs 1]

A fine-tuning of MRPC as `pretune train mrpc` does it, into a real folder, with a clock around
everything that a bare loop (gradients, optimizer, schedule) would not do. Seconds are those in
which the training waited; what a thread does beside it is given too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, record

from pretune.recipe.recipe import Recipe
from pretune.training.checkpoint import RunCheckpoints
from pretune.training.guard import Guard
from pretune.training.logging import Reporter
from pretune.training.loop import Trainer
from pretune.training.run import train_recipe
from pretune.training.stop import StopRequest

#: What is measured: where, what, and under which head.
MEASURED: tuple[tuple[Any, str, str], ...] = (
    (Trainer, "_save", "checkpoints: state, writing, hashing, fsync"),
    (RunCheckpoints, "flush", "checkpoints: waiting for the thread"),
    (Guard, "judge", "guard: is the loss sane?"),
    (Guard, "accept", "guard: remembering it"),
    (torch, "get_rng_state", "guard: the generator, for an exact second look"),
    (Reporter, "step", "logs: terminal, JSON lines, TensorBoard"),
    (StopRequest, "__call__", "asked to stop?"),
)


class Clock:
    """Seconds and calls by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
                self.calls[name] = self.calls.get(name, 0) + 1

        return timed


def measure(data: Path, epochs: float, changes: dict[str, Any]) -> None:
    """Train once and print a table."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.load(
            "mrpc",
            {
                "data.train": str(data / "train.tsv"),
                "data.validation": str(data / "dev.tsv"),
                "model.from": "minilm",
                "train.epochs": epochs,
                "output": str(Path(folder) / "run"),
                **changes,
            },
        )
        patches = [
            mock.patch.object(owner, name, clock.around(shown, getattr(owner, name)))
            for owner, name, shown in MEASURED
        ]
        for patch in patches:
            patch.start()
        try:
            result = train_recipe(recipe, quiet=True)
        finally:
            for patch in patches:
                patch.stop()
    shown = ", ".join(f"{key}={value}" for key, value in changes.items()) or "the recipe as it is"
    print(f"\n{shown}: {result.steps} updates, {1000 * result.seconds / result.steps:.0f} ms each")
    print(f"{'':<52}{'calls':>7}{'ms each':>10}{'of training':>13}")
    for name, seconds in clock.seconds.items():
        calls = clock.calls[name]
        share = seconds / result.seconds
        print(f"{name:<52}{calls:>7}{1000 * seconds / calls:>10.3f}{share:>13.3%}")
    # Waiting for the thread happens inside saving.
    total = sum(s for name, s in clock.seconds.items() if "waiting" not in name)
    print(f"{'all of it':<52}{'':>7}{'':>10}{total / result.seconds:>13.3%}", flush=True)
    percent = {"pretune": [100 * total / result.seconds]}
    record(f"safety: {shown}", "% of training", percent, "pretune", lower=True)


def main() -> None:
    """Measure with the defaults, and with everything turned up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=float, default=1.0)
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with mrpc/train.tsv and mrpc/dev.tsv")
    data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
    measure(data, options.epochs, {})
    turned_up = {"train.guard": "rollback", "train.log_every": 1, "train.save_every": 50}
    measure(data, options.epochs, turned_up)
    measure(data, options.epochs, {**turned_up, "train.background_save": True})


if __name__ == "__main__":
    main()
