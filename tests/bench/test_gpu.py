"""The bench of GPUs runs, in tiny sizes on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import gpu

SCRIPT = Path(gpu.__file__)


def test_ten_minutes_are_enough() -> None:
    assert sum(part.limit for part in gpu.PARTS.values()) < 600


def test_a_table_says_how_many_times_better_ours_is() -> None:
    rows = [
        gpu.row("training", "pretune", 300.0, "tokens/s", 10.0),
        gpu.row("training", "peer", 200.0, "tokens/s", 20.0),
        gpu.row("one answer", "pretune", 2.0, "ms"),
        gpu.row("one answer", "peer", 5.0, "ms"),
        gpu.row("kernel", "pretune", 1.0, ""),
    ]
    known = {**gpu.machine(), "gpus": ["NVIDIA H200, 139 GiB"]}
    text = gpu.markdown(rows, {"generate": "cut short after 70 seconds"}, known)
    assert "| training | peer | 200.0 | tokens/s | 20 | 1.50x |" in text
    assert "| one answer | peer | 5.0 | ms |  | 2.50x |" in text
    assert "| kernel | pretune | 1.0 |  |  |  |" in text
    assert "NVIDIA H200, 139 GiB" in text
    assert "Not measured: generate (cut short after 70 seconds)" in text


def test_a_part_in_tiny_sizes() -> None:
    rows = list(gpu.gpt_small(gpu.DRY))
    assert [each["engine"] for each in rows] == ["pretune", "plain PyTorch"]
    assert all(each["value"] > 0 and each["peak_mib"] > 0 for each in rows)


@pytest.mark.slow
def test_all_of_it_in_tiny_sizes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--dry", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert found["missing"] == {}
    assert {row["part"] for row in found["rows"]} == set(gpu.PARTS)
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8").count("| pretune |") >= 5
