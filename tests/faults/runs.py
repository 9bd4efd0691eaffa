"""Runs in processes of their own, and what holds of their folders at any moment."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pretune.checkpoints.manifest import find_damage
from pretune.training.checkpoint import checkpoints, newest_whole

HERE = Path(__file__).parent
#: Seconds until something is taken to hang.
PATIENCE = 120.0
#: Seconds between two looks. Writing a toy's checkpoint takes some ten times as long, and looking
#: without a pause would take a core away from the run.
PAUSE = 0.001


def neighbour(name: str) -> ModuleType:
    """A module of tests/training, whose toys and comparisons are ours too."""
    path = HERE.parent / "training" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"training_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Zygote:
    """Forks `pretune` processes; see zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread in all, or forking would not be sound.
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def ask(self, **question: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@dataclass
class Running:
    """A `pretune` process that was forked."""

    zygote: Zygote
    pid: int
    log: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def lives(self) -> bool:
        """Not yet waited for, it is a zombie when it ended."""
        return not Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].startswith(" Z")

    def wait(self) -> int:
        """How it ended: its code, or less a signal."""
        wait_until(lambda: False, self)
        return self.zygote.ask(wait=self.pid)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def assert_sound(run: Path) -> None:
    """What may be said of a run's folder at any moment at all."""
    for name in ("best", "last"):
        if (run / name).is_symlink():
            assert (run / name).exists(), f"{name} dangles"
            assert find_damage((run / name).resolve()) is None
    if (run / "last").exists():
        assert newest_whole(run) is not None


def steps_of(run: Path) -> list[int]:
    """The updates of its whole checkpoints."""
    return [step for step, path in checkpoints(run) if find_damage(path) is None]


def wait_until(condition: Callable[[], bool], running: Running) -> bool:
    """Look again and again; False when the process ended before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if not running.lives:
            return False
        assert time.monotonic() < deadline, running.said()
        time.sleep(PAUSE)
    return True
