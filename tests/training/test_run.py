from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretune.bundle.bundle import load
from pretune.data.records import Records
from pretune.errors import DataError, RecipeError, RunError
from pretune.experiments.runs import find_runs
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.training import run
from pretune.training.data import _groups, read_data
from pretune.training.run import train_recipe
from pretune.training.run_folder import RunFolder
from pretune.training.run_result import RunResult, SeveralRuns
from pretune.training.several_runs import train_seeds
from pretune.training.stop import Interrupted
from tests.tasks.questions import question
from tests.training.outcomes import StopAt

Make = Callable[..., Recipe]


class TestFolder:
    def test_holds_everything(self, toy_recipe: Make) -> None:
        recipe = toy_recipe()
        result = train_recipe(recipe, quiet=True)
        folder = Path(recipe.output)
        assert Recipe.load(folder / "recipe.yaml") == recipe
        saved = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert saved == json.loads(json.dumps(result.to_dict()))
        assert saved["environment"]["torch"]
        for name in ("best", "last"):
            assert load(folder / name).task is not None
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert {"train/loss", "validation/accuracy"} <= {
            k for line in lines for k in json.loads(line)
        }

    def test_tensorboard_reads_the_events(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(train__log_every=3)
        train_recipe(recipe, quiet=True)
        events = EventAccumulator(str(Path(recipe.output) / "events"))
        events.Reload()
        assert [e.step for e in events.Scalars("train/loss")] == [3, 6, 9, 12]
        assert [e.step for e in events.Scalars("validation/accuracy")] == [6, 12]

    def test_keeps_only_the_best_and_the_last_model(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(train__epochs=5)
        train_recipe(recipe, quiet=True)
        folder = Path(recipe.output)
        kept = {path.name for path in (folder / "checkpoints").iterdir()}
        assert kept == {(folder / name).resolve().name for name in ("best", "last")}

    def test_loads_by_its_name_as_the_best(self, toy_recipe: Make) -> None:
        recipe = toy_recipe()
        train_recipe(recipe, quiet=True)
        found = load(recipe.output).report
        assert found is not None
        assert Path(found.source) == Path(recipe.output) / "best"

    def test_repeats_bit_for_bit_from_its_recipe(self, toy_recipe: Make, tmp_path: Path) -> None:
        recipe = toy_recipe()
        train_recipe(recipe, quiet=True)
        again = Recipe.load(
            Path(recipe.output) / "recipe.yaml", {"output": str(tmp_path / "again")}
        )
        train_recipe(again, quiet=True)
        one, two = (
            (Path(r.output) / "last" / "model.safetensors").read_bytes() for r in (recipe, again)
        )
        assert one == two


class TestOccupiedFolder:
    def test_with_another_run_names_the_differences(self, toy_recipe: Make) -> None:
        train_recipe(toy_recipe(train__max_steps=1), quiet=True)
        with pytest.raises(RunError) as caught:
            train_recipe(toy_recipe(train__max_steps=2), quiet=True)
        assert "already holds a finished run of another recipe" in str(caught.value)
        assert "train.max_steps: 1 there, 2 now" in str(caught.value)
        assert "--overwrite" in str(caught.value)

    def test_with_the_same_run_says_so(self, toy_recipe: Make) -> None:
        train_recipe(toy_recipe(train__max_steps=1), quiet=True)
        with pytest.raises(RunError, match="of this very recipe"):
            train_recipe(toy_recipe(train__max_steps=1), quiet=True)

    def test_is_not_touched_by_the_refused_run(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(train__max_steps=1)
        train_recipe(recipe, quiet=True)
        folder = Path(recipe.output)
        before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
        with pytest.raises(RunError):
            train_recipe(toy_recipe(train__max_steps=2), quiet=True)
        assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before

    def test_can_be_overwritten(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(train__max_steps=1)
        train_recipe(recipe, quiet=True)
        (Path(recipe.output) / "notes.txt").write_text("mine", encoding="utf-8")
        result = train_recipe(toy_recipe(train__max_steps=2), overwrite=True, quiet=True)
        assert result.steps == 2
        assert (Path(recipe.output) / "notes.txt").read_text(encoding="utf-8") == "mine"
        kept = [path.name for path in (Path(recipe.output) / "checkpoints").iterdir()]
        assert kept == ["step-000002"]

    def test_with_foreign_files_is_refused_even_then(self, toy_recipe: Make) -> None:
        folder = Path(toy_recipe().output)
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine", encoding="utf-8")
        with pytest.raises(RunError, match="not a run of pretune"):
            train_recipe(toy_recipe(), overwrite=True, quiet=True)
        assert [p.name for p in folder.iterdir()] == ["thesis.txt"]

    def test_that_is_a_file_is_refused(self, toy_recipe: Make) -> None:
        Path(toy_recipe().output).write_text("x", encoding="utf-8")
        with pytest.raises(RunError, match="is a file"):
            train_recipe(toy_recipe(), quiet=True)

    def test_whose_recipe_is_broken_is_an_error(self, toy_recipe: Make) -> None:
        folder = Path(toy_recipe().output)
        folder.mkdir()
        (folder / "recipe.yaml").write_text("{", encoding="utf-8")
        with pytest.raises(RunError, match="cannot be read"):
            train_recipe(toy_recipe(), quiet=True)

    @pytest.mark.skipif(os.geteuid() == 0, reason="running as root, who may write everywhere")
    def test_that_cannot_be_written_is_an_error(self, toy_recipe: Make, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot be written"):
            train_recipe(toy_recipe(output=str(tmp_path / "closed" / "run")), quiet=True)


def test_bad_data_leaves_no_folder(toy_recipe: Make, tmp_path: Path) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("text\tlabel\ngood\tgood\nx\tugly\n", encoding="utf-8")
    recipe = toy_recipe(data__validation=str(bad))
    with pytest.raises(DataError, match=r"bad\.tsv, line 3, column 'label': unknown label 'ugly'"):
        train_recipe(recipe, quiet=True)
    assert not Path(recipe.output).exists()


class TestSplit:
    def test_holds_back_a_share_and_loses_nothing(self, toy_recipe: Make) -> None:
        train, held_out = read_data(toy_recipe())
        assert held_out is not None
        assert (len(train), len(held_out)) == (48, 12)
        assert sorted([*(train.lines or ()), *(held_out.lines or ())]) == list(range(2, 62))

    def test_is_the_same_for_every_seed(self, toy_recipe: Make) -> None:
        one, two = (read_data(toy_recipe(seed=seed))[1] for seed in (0, 7))
        assert one is not None
        assert two is not None
        assert one.lines == two.lines

    def test_of_too_few_records_is_an_error(self, toy_recipe: Make, tmp_path: Path) -> None:
        path = tmp_path / "few.tsv"
        path.write_text("text\tlabel\na\tx\nb\ty\n", encoding="utf-8")
        with pytest.raises(DataError, match="too few to hold back"):
            read_data(toy_recipe(data__train=str(path)))

    def test_questions_about_a_passage_stay_together(
        self, toy_recipe: Make, tmp_path: Path
    ) -> None:
        path = tmp_path / "questions.jsonl"
        rows = [
            question("good film", f"A good film, number {i % 9}.", number=str(i)) for i in range(60)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values = toy_recipe(data__train=str(path), data__validation=0.2).to_dict()
        values["task"] = {"name": "answer"}
        train, held_out = read_data(Recipe.of(values))
        assert isinstance(held_out, Records)
        assert len(train) + len(held_out) == 60
        assert 12 - 60 // 9 < len(held_out) <= 12  # no passage that is left would still fit
        seen, new = ({row["context"] for row in data.rows} for data in (train, held_out))
        assert not seen & new
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[::9]), encoding="utf-8")
        with pytest.raises(DataError, match="1 different contexts are too few"):
            read_data(Recipe.of(values))

    def test_none_is_possible(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(data__validation=None, train__max_steps=2)
        result = train_recipe(recipe, quiet=True)
        assert result.metrics == {}
        assert load(recipe.output).task is not None

    def test_a_limit_takes_the_first_records(self, toy_recipe: Make) -> None:
        train, held_out = read_data(toy_recipe(data__limit=10))
        assert held_out is not None
        assert (len(train), len(held_out)) == (10, 12)


def test_several_seeds_give_mean_and_spread(toy_recipe: Make) -> None:
    recipe = toy_recipe(train__max_steps=4)
    result = train_seeds(recipe, 3, quiet=True)
    assert [run.seed for run in result.runs] == [0, 1, 2]
    values = [run.metrics["loss"] for run in result.runs]
    assert len(set(values)) == 3
    mean = sum(values) / 3
    spread = (sum((v - mean) ** 2 for v in values) / 2) ** 0.5
    assert result.summary()["loss"] == pytest.approx((mean, spread))
    for seed in range(3):
        assert (Path(recipe.output) / f"seed-{seed}" / "result.json").is_file()


class TestSeedsGoOn:
    def test_with_what_is_there(self, toy_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """One seed is finished, one was stopped, one has not begun."""
        recipe = toy_recipe(train__max_steps=4)
        other = recipe.changed({"output": recipe.output + "-whole"})
        whole = train_seeds(other, 3, quiet=True)
        first = train_seeds(recipe, 1, quiet=True)
        with monkeypatch.context() as patch:
            patch.setattr(run, "StopRequest", lambda say: StopAt(2))
            with pytest.raises(Interrupted) as caught:
                train_seeds(recipe, 3, quiet=True)
        assert caught.value.folder.name == "seed-1"
        result = train_seeds(recipe, 3, quiet=True)
        assert result.runs[0] == first.runs[0]
        assert [one.metrics for one in result.runs] == [one.metrics for one in whole.runs]
        assert train_seeds(recipe, 3, quiet=True).runs == result.runs

    def test_a_taken_folder_is_seen_before_any_training(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(train__max_steps=2)
        taken = f"{recipe.output}/seed-2"
        train_recipe(recipe.changed({"output": taken, "seed": 2, "train.clip": 2.0}), quiet=True)
        with pytest.raises(RunError, match=r"(?s)seed-2: already holds .*train\.clip: 2\.0 there"):
            train_seeds(recipe, 3, quiet=True)
        assert os.listdir(recipe.output) == ["seed-2"]
        found = train_seeds(recipe, 3, overwrite=True, quiet=True)
        assert [one.seed for one in found.runs] == [0, 1, 2]

    def test_a_seed_too_large_is_seen_before_any_training(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(seed=2**63 - 1)
        with pytest.raises(RecipeError, match="seed"):
            train_seeds(recipe, 2, quiet=True)
        assert not Path(recipe.output).exists()


def test_figures_that_are_not_finite_are_null_in_the_result(tmp_path: Path) -> None:
    figures = {"loss": math.nan, "perplexity": math.inf, "accuracy": 0.5}
    details = {"each": [1.0, math.nan]}
    given = RunResult("f", 0, figures, details, 1, 1, 1, 1, 1.0, 1.0)
    folder = RunFolder(tmp_path)
    folder.finish(given)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    written = json.loads(text, parse_constant=refuse)
    assert written["metrics"] == {"loss": None, "perplexity": None, "accuracy": 0.5}
    assert written["details"] == {"each": [1.0, None]}
    read = folder.result()
    assert read is not None
    assert math.isnan(read.metrics["loss"])
    assert read.metrics["accuracy"] == 0.5
    several = SeveralRuns((read, given)).to_dict()
    assert several["summary"]["loss"] == {"mean": None, "sd": None}
    assert several["summary"]["accuracy"] == {"mean": 0.5, "sd": 0.0}
    (run_of_it,) = find_runs(tmp_path).runs
    assert math.isnan(run_of_it.metrics["loss"])
    assert not [problem for problem in run_of_it.problems if "result.json" in problem]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def long_run(toy_recipe: Make, tmp_path: Path) -> Any:
    """A training in a process of its own that would take hours; and its folder."""
    recipe = toy_recipe(train__max_steps=10**6, train__eval_every=20, train__log_every=1)
    path = tmp_path / "long.yaml"
    path.write_text(yaml12.dump(recipe.to_dict()), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "pretune", "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = Path(recipe.output)
    wait_for((folder / "last").exists, process)
    yield process, folder
    process.kill()
    process.wait()


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_by_a_signal_saves_and_says_where(self, long_run: Any, number: signal.Signals) -> None:
        process, folder = long_run
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 128 + number
        assert f"the last checkpoint is {folder / 'last'}" in err
        assert f"pretune train --resume {folder}" in err
        assert "Traceback" not in err
        step = int((folder / "last").resolve().name.removeprefix("step-"))
        assert f"stopped after {step} updates" in err
        assert load(folder / "last").task is not None
        assert not (folder / "result.json").exists()

    def test_by_force_leaves_a_whole_model(self, long_run: Any) -> None:
        process, folder = long_run
        for _ in range(5):  # meet it at different moments, saving among them
            time.sleep(0.05)
            process.send_signal(signal.SIGSTOP)
            assert load(folder / "last").task is not None
            assert load(folder / "best").task is not None
            process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        assert load(folder / "last").task is not None
        assert load(folder / "best").task is not None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_records_that_share_a_text_are_of_one_group(pairs: list[tuple[int, int]]) -> None:
    rows = [{"source": f"s{a}", "target": f"t{b}"} for a, b in pairs]
    records = Records(rows, "x", None, ("source", "target"))
    found = _groups(records, ("source", "target")).tolist()
    linked = [[a == c or b == d for c, d in pairs] for a, b in pairs]
    for _ in pairs:  # what is reached in one more step
        linked = [
            [
                any(one and row[j] for one, row in zip(mine, linked, strict=True))
                for j in range(len(pairs))
            ]
            for mine in linked
        ]
    assert [[i == j for j in found] for i in found] == linked
    assert sorted(set(found)) == list(range(max(found) + 1))
