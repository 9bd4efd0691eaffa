"""What comes out of a run, to be compared with what comes out of another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pretune.training import run
from pretune.training.checkpoint import TENSORS, VALUES
from pretune.training.sample_sheet import SAMPLES, read_sheet


class StopAt:
    """Stands in for the handler of signals: asks to stop in a certain update."""

    signal = 15

    def __init__(self, updates: int) -> None:
        self.left = updates

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0  # once asked, for good

    def __enter__(self) -> StopAt:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


@contextmanager
def stopped_after(updates: int) -> Iterator[None]:
    """Let a training within be asked to stop in this update, and see that it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "StopRequest", lambda say: StopAt(updates))
        with pytest.raises(run.Interrupted):
            yield


def metrics_log(folder: str | Path) -> list[dict[str, Any]]:
    """What was logged, without the speed."""
    lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        entry.pop("train/tokens_per_second", None)
    return entries


def outcome(folder: str | Path) -> dict[str, Any]:
    """All that must be alike: the weights, the moments, the place, the log, the figures."""
    folder = Path(folder)
    values = json.loads((folder / "last" / VALUES).read_text(encoding="utf-8"))
    course = values["course"]
    for timed in (course, values["window"], course["best"] or {}, course["before"] or {}):
        timed.pop("seconds", None)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for name in ("seconds", "peak_memory_mb", "folder"):
        result.pop(name)
    for part in result["data"].values():
        part.pop("from")
    return {
        "weights": (folder / "last" / "model.safetensors").read_bytes(),
        "best": (folder / "best" / "model.safetensors").read_bytes()
        if (folder / "best").exists()
        else None,
        "state": (folder / "last" / TENSORS).read_bytes(),
        "values": values,
        "log": metrics_log(folder),
        "samples": read_sheet(folder / SAMPLES),
        "result": result,
    }


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    for key in one:
        assert one[key] == other[key], key
