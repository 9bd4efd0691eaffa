"""What all benches share: options, the record of figures, and tables; nothing is timed here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import all as bench
import machine

PAIRED = {"bench": "gpt", "what": "small", "unit": "tokens/s", "lower_is_better": False}


def rows_of(ours: list[float], other: list[float], **more: object) -> list[dict]:
    return [
        {**PAIRED, "engine": "pretune", "ours": True, "values": ours, **more},
        {**PAIRED, "engine": "peer", "ours": False, "values": other, **more},
    ]


def runner(tmp_path: Path, **options: object) -> bench.Runner:
    values = {"minutes": 1.0, "isa": "native", "rounds": None, **options}
    return bench.Runner(argparse.Namespace(**values), tmp_path)


class TestOptions:
    def test_isa_starts_again_with_all_limits(self, monkeypatch):
        started = {}

        def execve(program, command, environment):
            started.update(environment)
            raise SystemExit

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(sys, "argv", ["gpt.py", "--isa", "avx2", "--threads", "3"])
        for name in ("OMP_NUM_THREADS", *machine.LIMITS["avx2"]):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(SystemExit):
            machine.parse(argparse.ArgumentParser())
        limits = {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"}
        assert {started[name].lower() for name in limits} == {"avx2"}
        assert started["OMP_NUM_THREADS"] == "3"

    def test_limits_that_hold_already_start_nothing(self, monkeypatch, capsys):
        monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("started again"))
        monkeypatch.setattr(sys, "argv", ["gpt.py", "--isa", "avx2"])
        for name, value in machine.LIMITS["avx2"].items():
            monkeypatch.setenv(name, value)
        machine.parse(argparse.ArgumentParser())
        printed = capsys.readouterr().out
        assert "limited by ATEN_CPU_CAPABILITY" in printed
        assert "kernels: " in printed
        assert "torch " in printed


def test_a_table_shows_medians_and_is_kept_as_json(tmp_path, monkeypatch):
    file = tmp_path / "figures.json"
    monkeypatch.setattr(machine, "_rows", [])
    monkeypatch.setattr(machine, "_files", [file])
    text = machine.table("load", {"ours": [2.0, 1.0, 9.0], "peer": [3.0]}, "ours", "s", lower=True)
    assert text.splitlines()[1].split() == ["ours", "2", "1", "-", "9"]
    assert text.splitlines()[2].split()[-1] == "1.50x"  # 3 s take longer than 2 s
    rows = json.loads(file.read_text())["rows"]
    assert [row["values"] for row in rows] == [[2.0, 1.0, 9.0], [3.0]]
    assert [row["ours"] for row in rows] == [True, False]


class TestAll:
    def test_ratios_are_those_of_rounds(self, tmp_path):
        # Medians would say 30 / 20; the rounds say 1.5, 3 and 1.
        text = bench.markdown(rows_of([30, 60, 10], [20, 20, 10]), runner(tmp_path), "abc")
        assert "1.50x (1.00 – 3.00)" in text
        assert "commit abc" in text

    def test_less_is_better_where_it_is(self, tmp_path):
        rows = rows_of([2.0], [3.0], lower_is_better=True)
        assert "| 1.50x |" in bench.markdown(rows, runner(tmp_path), None)

    def test_a_bench_that_fails_is_named_and_the_others_run(self, tmp_path, monkeypatch):
        monkeypatch.setattr(bench, "JOBS", {"none": bench.Job("none.py", "")})
        failed = runner(tmp_path)
        assert failed.run("none", tmp_path) == []
        assert "No such file" in failed.missing["none"]
        assert "Not (whole) here: none" in bench.markdown([], failed, None)

    def test_what_does_not_fit_in_is_named(self, tmp_path):
        late = runner(tmp_path, minutes=0.0)
        assert late.run("gpt", tmp_path) == []
        assert late.missing == {"gpt": "the time was up"}

    def test_every_job_is_a_bench(self):
        for job in bench.JOBS.values():
            source = (Path(bench.__file__).parent / job.script).read_text(encoding="utf-8")
            assert "machine import parse" in source
            for option in job.size.split():
                assert not option.startswith("--") or f'"{option}"' in source
            assert job.rounds is None or '"--rounds"' in source
