"""Runs in groups of processes, and what comes out of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pretune.recipe.recipe import Recipe

CLOSE = 2e-6
#: With a large eps AdamW neither blows up the rounding of a sum in another order nor hides a wrong
#: factor of the gradient, as clipping would.
STEADY = {"train__eps": 0.1, "train__learning_rate": 0.1, "train__clip": None}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Together:
    """Groups of processes; see ranks.py."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("ranks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ended(self, size: int, **question: Any) -> list[int]:
        """Let so many processes `act`; the codes they ended with, in the order of their ranks."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._log.write_text("", encoding="utf-8")
        asked = {"size": size, "port": free_port(), "log": str(self._log), **question}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes

    def said(self) -> str:
        """What the last group printed."""
        return self._log.read_text(encoding="utf-8")

    def _do(self, size: int, **question: Any) -> None:
        assert self.ended(size, **question) == [0] * size, self.said()

    def train(
        self, size: int, recipe: Recipe, *, stop_at: int | None = None, change: str | None = None
    ) -> None:
        self._do(size, work="train", what=recipe.to_dict(), stop_at=stop_at, change=change)

    def resume(self, size: int, run: str) -> None:
        self._do(size, work="resume", what=run)

    def either(self, size: int, recipe: Recipe) -> None:
        self._do(size, work="either", what=recipe.to_dict())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def weights(folder: str | Path) -> dict[str, Tensor]:
    return load_file(Path(folder) / "last" / "model.safetensors")


def assert_close(folder: str | Path, expected: dict[str, Tensor]) -> None:
    found = weights(folder)
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=CLOSE), (
            name,
            float((found[name] - value).abs().max()),
        )


def result_of(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text(encoding="utf-8"))
    return found
