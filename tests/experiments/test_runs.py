from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from pretune.cli.app import app
from pretune.errors import RunError
from pretune.experiments.runs import RunInfo, find_runs
from pretune.render.experiment_views import runs_view, short_time
from pretune.text.spoken_language import speaking

RECIPE = "task: {name: classify}\nmodel: {from: minilm}\ndata: {train: a.tsv}\nseed: 3\n"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run's folder, so many seconds old."""

    def run(
        name: str,
        *entries: dict[str, float],
        result: str | None = None,
        recipe: str | None = RECIPE,
        tail: str = "",
        age: float = 0.0,
    ) -> Path:
        folder = tmp_path / name
        (folder / "checkpoints" / "step-000001").mkdir(parents=True)
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        files = {"recipe.yaml": recipe, "metrics.jsonl": lines + tail, "result.json": result}
        for file, text in files.items():
            if text is not None:
                (folder / file).write_text(text, encoding="utf-8")
        for file in (*folder.glob("*.*"), folder / "checkpoints"):
            os.utime(file, (time.time() - age,) * 2)
        return folder

    return run


def evaluated(step: int, accuracy: float, loss: float = 1.0) -> dict[str, float]:
    found = {"validation/accuracy": accuracy, "validation/loss": loss}
    return {"step": step, "epoch": step / 10, **found}


def outcome(accuracy: float, seconds: float = 9.5, loss: float = 1.0, steps: int = 8) -> str:
    metrics = {"loss": loss, "accuracy": accuracy}
    return json.dumps({"metrics": metrics, "best_step": 7, "steps": steps, "seconds": seconds})


def only(folder: Path) -> RunInfo:
    (run,) = find_runs(folder).runs
    return run


class TestOneRun:
    def test_that_is_finished(self, make: Make, tmp_path: Path) -> None:
        folder = make("a", evaluated(5, 0.5), result=outcome(0.9), age=3600)
        run = only(tmp_path)
        assert (run.folder, run.state, run.problems) == (str(folder), "finished", [])
        assert (run.task, run.model, run.data, run.seed) == ("classify", "minilm", "a.tsv", 3)
        assert run.metrics == {"loss": 1.0, "accuracy": 0.9}
        assert (run.picked_by, run.best, run.best_step) == ("accuracy", 0.9, 7)
        assert (run.step, run.seconds) == (8, 9.5)
        assert run.age == pytest.approx(3600, abs=60)

    def test_that_was_stopped(self, make: Make, tmp_path: Path) -> None:
        entries = [evaluated(5, 0.8, 0.1), evaluated(10, 0.7), {"step": 12, "epoch": 1.2}]
        make("a", *entries, age=3600)
        run = only(tmp_path)
        assert (run.state, run.step, run.epoch, run.seconds) == ("stopped", 12, 1.2, None)
        assert (run.best, run.best_step) == (0.8, 5)
        assert run.metrics == {"accuracy": 0.8, "loss": 0.1}

    def test_that_is_running(self, make: Make, tmp_path: Path) -> None:
        make("a", evaluated(5, 0.8), age=5)
        assert only(tmp_path).state == "running"

    def test_that_writes_seldom_is_running_for_longer(self, make: Make, tmp_path: Path) -> None:
        folder = make("a", evaluated(5, 0.8), evaluated(6, 0.8), age=500)
        assert only(tmp_path).state == "stopped"
        # It began 600 seconds before its second entry: a pause is 300 seconds.
        os.utime(folder / "recipe.yaml", (time.time() - 1100,) * 2)
        assert only(tmp_path).state == "running"

    def test_with_less_loss_is_better(self, make: Make, tmp_path: Path) -> None:
        recipe = RECIPE + "train: {best: loss}\n"
        make("a", evaluated(5, 0.9, 0.5), evaluated(6, 0.8, 0.4), recipe=recipe)
        run = only(tmp_path)
        assert (run.best, run.best_step) == (0.4, 6)

    def test_may_be_the_folder_itself(self, make: Make) -> None:
        folder = make("a", result=outcome(0.9))
        assert only(folder).folder == str(folder)


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            ({"recipe": None}, "recipe.yaml: is missing"),
            ({"recipe": "task: ["}, "recipe.yaml"),
            ({"recipe": "just text"}, "recipe.yaml: not readable"),
            ({"recipe": "task: {name: classify}\n"}, "recipe.yaml: has no 'model'"),
            ({"recipe": "task: {name: a}\nmodel: 3\ndata: 4\n"}, "recipe.yaml: not readable"),
            ({"result": "{"}, "result.json: not readable"),
            ({"result": "[]"}, "result.json: not readable"),
            ({"result": "{}"}, "result.json: has no 'metrics'"),
            ({"result": '{"metrics": {"a": "b"}}'}, "result.json: not readable"),
        ],
    )
    def test_is_named_and_not_fatal(
        self, make: Make, tmp_path: Path, damage: dict[str, str | None], said: str
    ) -> None:
        make("good", result=outcome(0.9))
        make("bad", **{"result": outcome(0.8), **damage})
        runs = {Path(run.folder).name: run for run in find_runs(tmp_path).runs}
        assert runs["good"].state == "finished"
        assert runs["bad"].state == "damaged"
        assert said in runs["bad"].problems[0]

    def test_a_last_line_cut_off_is_usual(self, make: Make, tmp_path: Path) -> None:
        make("a", evaluated(5, 0.8), tail='{"step": 6, "epo')
        run = only(tmp_path)
        assert (run.step, run.problems) == (5, [])

    def test_a_broken_line_in_the_middle_is_named(self, make: Make, tmp_path: Path) -> None:
        make("a", evaluated(5, 0.8), tail='{"step": 6,\n{"step": 7, "epoch": 0.7}\n[]\n')
        run = only(tmp_path)
        assert run.step == 7
        assert [text.split(":")[0] for text in run.problems] == [
            "metrics.jsonl, line 2",
            "metrics.jsonl, line 4",
        ]

    def test_other_bytes_than_text_are_survived(self, make: Make, tmp_path: Path) -> None:
        folder = make("a", result=outcome(0.9))
        for name in ("recipe.yaml", "metrics.jsonl", "result.json"):
            (folder / name).write_bytes(b"\xff\xfe\x00\n\x80")
        run = only(tmp_path)
        assert run.state == "damaged"
        assert len(run.problems) >= 3

    def test_any_half_of_a_run_can_be_listed(self, make: Make, tmp_path: Path) -> None:
        whole = make("whole", evaluated(5, 0.8), result=outcome(0.9))
        for name in ("recipe.yaml", "metrics.jsonl", "result.json"):
            text = (whole / name).read_bytes()
            for size in range(0, len(text), 7):
                half = tmp_path / f"half-{name}-{size}"
                shutil.copytree(whole, half)
                (half / name).write_bytes(text[:size])
        console = Console(file=io.StringIO())
        console.print(runs_view(find_runs(tmp_path)))


class TestManyRuns:
    def test_are_found_wherever_they_are(self, make: Make, tmp_path: Path) -> None:
        for name in ("a", "b/seed-0", "b/seed-1", "c", "c/trial-0", ".hidden/d"):
            make(name, result=outcome(0.9))
        (tmp_path / "empty").mkdir()
        (tmp_path / "a" / "best").symlink_to(tmp_path / "c")
        found = {str(Path(run.folder).relative_to(tmp_path)) for run in find_runs(tmp_path).runs}
        assert found == {"a", "b/seed-0", "b/seed-1", "c", "c/trial-0"}

    def order(self, folder: Path, sort: str) -> list[str]:
        return [Path(run.folder).name for run in find_runs(folder, sort).runs]

    def test_are_sorted(self, make: Make, tmp_path: Path) -> None:
        make("old", result=outcome(0.9, loss=0.3), age=300)
        make("new", result=outcome(0.7, loss=0.1), age=100)
        make("mid", result=outcome(0.8, loss=0.2), age=200)
        make("none", age=400)
        assert self.order(tmp_path, "time") == ["new", "mid", "old", "none"]
        assert self.order(tmp_path, "metric") == ["old", "mid", "new", "none"]
        assert self.order(tmp_path, "accuracy") == ["old", "mid", "new", "none"]
        assert self.order(tmp_path, "loss") == ["new", "mid", "old", "none"]

    def test_an_unknown_metric_is_an_error(self, make: Make, tmp_path: Path) -> None:
        make("a", result=outcome(0.9))
        with pytest.raises(RunError, match="Did you mean 'accuracy'"):
            find_runs(tmp_path, "acuracy")

    def test_a_staged_model_is_no_run(self, make: Make, tmp_path: Path) -> None:
        make("run")
        staged = tmp_path / "staged"
        staged.mkdir()
        for name in ("config.json", "recipe.yaml", "README.md"):
            (staged / name).write_text("{}", encoding="utf-8")
        assert [Path(run.folder).name for run in find_runs(tmp_path).runs] == ["run"]

    def test_no_folder_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no such folder"):
            find_runs(tmp_path / "nowhere")

    def test_are_shown_with_their_problems(self, make: Make, tmp_path: Path) -> None:
        make("a", evaluated(5, 0.8), result=outcome(0.9))
        make("b", recipe="[bold]")
        out = io.StringIO()
        Console(file=out, width=300).print(runs_view(find_runs(tmp_path)))
        assert "accuracy 0.9000" in out.getvalue()
        assert f"! {tmp_path}/b: recipe.yaml: not readable" in out.getvalue()

    @pytest.mark.parametrize("width", [30, 70, 120, 200])
    def test_never_have_a_name_over_two_lines(self, make: Make, tmp_path: Path, width: int) -> None:
        name = "a-rather-long-name-of-a-run-0123456789"
        make(name, evaluated(5, 0.8), result=outcome(0.9))
        columns = {"COLUMNS": str(width)}
        output = CliRunner().invoke(app, ["runs", str(tmp_path)], env=columns).output
        assert f"{tmp_path}/{name}" in output
        assert "finished" in "".join(output.split())

    @pytest.mark.parametrize("spoken", ["en", "zh"])
    def test_have_words_and_numbers_unbroken(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoken: str
    ) -> None:
        make("a", evaluated(123_456, 0.8), result=outcome(0.9, steps=123_456))
        monkeypatch.chdir(tmp_path)
        with speaking(spoken):
            for width in range(40, 140):
                out = io.StringIO()
                Console(file=out, width=width).print(runs_view(find_runs(Path())))
                for text in ("classify", "123,456"):
                    assert text in out.getvalue(), width


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (90, "90 s"),
        (130, "2.2 min"),
        (3600, "60 min"),
        (9000, "2.5 h"),
        (1e6, "12 d"),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert short_time(seconds) == text
