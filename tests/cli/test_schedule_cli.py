"""`pretune plot-schedule` as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import pretune, refused


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with 40 films of different lengths."""
    rows = [f"{'the ' * (i % 5)}{w} film\t{w}" for i in range(20) for w in ("good", "bad")]
    text = "\n".join(["text\tlabel", *rows]) + "\n"
    (tmp_path / "films.tsv").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_table_and_a_chart(tmp_path: Path) -> None:
    done = pretune("plot-schedule", "mrpc", "--updates", "345", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    (peak,) = (line for line in lines if "end of warm-up" in line)
    assert [part.strip() for part in peak.strip("│").split("│")][1:] == ["35", "5.000e-05", "32"]
    assert lines[0] == "linear over 345 updates"
    assert "⠉" in done.stdout, "a chart in Braille"
    assert lines[-1].split() == ["1", "345"]


def test_json(tmp_path: Path) -> None:
    ramp = "train.batch_ramp={start: 8, updates: 10}"
    done = pretune(
        *("plot-schedule", "mrpc", ramp, "train.max_steps=40", "train.schedule=inverse_sqrt"),
        "--json",
        cwd=tmp_path,
    )
    found = json.loads(done.stdout)
    assert found["schedule"]["kind"] == "inverse_sqrt"
    assert found["schedule"]["total"] == 40
    points = {point["name"]: point for point in found["points"]}
    assert points["start"]["batch"] == 8
    assert points["end"]["learning_rate"] == pytest.approx(5e-5 * (5 / 40) ** 0.5)


def test_updates_goes_before_max_steps(tmp_path: Path) -> None:
    done = pretune(
        *("plot-schedule", "mrpc", "train.max_steps=40", "--updates", "7", "--json"), cwd=tmp_path
    )
    assert json.loads(done.stdout)["schedule"]["total"] == 7


def test_the_updates_are_those_of_the_run(place: Path, tiny_folder: Path) -> None:
    common = ["films.tsv", f"model.from={tiny_folder}", "task.max_length=6", "train.epochs=1.5"]
    by_size = pretune("plot-schedule", *common, "train.batch_size=8", "--json", cwd=place)
    assert by_size.returncode == 0, by_size.stderr
    total = json.loads(by_size.stdout)["schedule"]["total"]
    assert total == 5 + 3, "36 films, 4 being held back"
    ramp = "train.batch_ramp={start: 5, updates: 0.5}"
    by_tokens = [*common, "train.batch_tokens=20", ramp, "--json"]
    planned = pretune("plot-schedule", *by_tokens, cwd=place)
    run = pretune("train", *by_tokens, "--quiet", cwd=place)
    assert run.returncode == 0, run.stderr
    total = json.loads(planned.stdout)["schedule"]["total"]
    assert json.loads(run.stdout)["steps"] == total


def test_a_picture(tmp_path: Path) -> None:
    done = pretune(*("plot-schedule", "mrpc", "--updates", "9", "--png", "plan.png"), cwd=tmp_path)
    assert done.stdout.endswith("wrote plan.png\n")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    done = pretune(
        *("plot-schedule", "mrpc", "--updates", "9"), cwd=tmp_path, PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "*" in done.stdout


def test_help_has_examples(tmp_path: Path) -> None:
    done = pretune("plot-schedule", "--help", cwd=tmp_path)
    assert "pretune plot-schedule mrpc" in done.stdout.split("Examples", 1)[1]


class TestMistakes:
    def test_an_unknown_recipe(self, tmp_path: Path) -> None:
        done = pretune("plot-schedule", "mrcp", cwd=tmp_path)
        refused(done, "Did you mean 'mrpc'?")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("train.schedule=zigzag", "train.schedule"),
            ("train.warmup=1.5", "train.warmup: below 1 it is a share"),
            ("train.batch_ramp={start: 64}", "batch_ramp.start is above the full batch, 32"),
        ],
    )
    def test_a_wrong_value(self, tmp_path: Path, override: str, said: str) -> None:
        done = pretune("plot-schedule", "mrpc", override, "--updates", "9", cwd=tmp_path)
        refused(done, said)

    def test_no_updates(self, tmp_path: Path) -> None:
        refused(pretune("plot-schedule", "mrpc", "--updates", "0", cwd=tmp_path), "--updates")

    def test_data_that_is_not_there(self, tmp_path: Path) -> None:
        done = pretune("plot-schedule", "mrpc", "data.train=no.tsv", cwd=tmp_path)
        refused(done, "no.tsv", "--updates N")

    def test_a_model_that_is_not_there(self, place: Path) -> None:
        done = pretune("plot-schedule", "films.tsv", "model.from=nowhere", cwd=place)
        refused(done, "nowhere", "--updates N")

    def test_a_picture_that_cannot_be_written(self, tmp_path: Path) -> None:
        done = pretune(
            *("plot-schedule", "mrpc", "--updates", "9", "--png", "no/plan.png"), cwd=tmp_path
        )
        refused(done, "no/plan.png: cannot be written", "--png")
