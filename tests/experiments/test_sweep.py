from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import pretune.experiments.sweep as sweep_module
from pretune.errors import CheckpointError, RecipeError, RunError
from pretune.experiments.search_space import parse_space
from pretune.experiments.sweep import Sweep, SweepResult, SweepStopped
from pretune.recipe.recipe import Recipe
from pretune.training.run import train_recipe

Make = Callable[..., Recipe]
RATES = ("train.learning_rate=log:1e-5..1e-2",)


def sweep(recipe: Recipe, *over: str, trials: int, **options: Any) -> SweepResult:
    spaces = [parse_space(one) for one in over or RATES]
    return Sweep(recipe, spaces, quiet=True, **options).run(trials)


@pytest.fixture
def short(toy_recipe: Make) -> Recipe:
    return toy_recipe(train__max_steps=3)


class TestSweep:
    def test_trains_with_values_from_the_ranges(self, short: Recipe) -> None:
        over = (*RATES, "train.batch_size=4,8", "train.warmup=0..0.2", "train.max_steps=1..3")
        result = sweep(short, *over, trials=4)
        assert sorted(trial.number for trial in result.trials) == [0, 1, 2, 3]
        for trial in result.trials:
            recipe = Recipe.load(Path(trial.folder) / "recipe.yaml")
            values = {
                "train.learning_rate": recipe.train.learning_rate,
                "train.batch_size": recipe.train.batch_size,
                "train.warmup": recipe.train.warmup,
                "train.max_steps": recipe.train.max_steps,
            }
            assert trial.values == values
            assert 1e-5 <= recipe.train.learning_rate <= 1e-2
            assert recipe.train.batch_size in (4, 8)
            assert 0 <= recipe.train.warmup <= 0.2
            assert recipe.train.max_steps in (1, 2, 3)
        assert len({trial.values["train.learning_rate"] for trial in result.trials}) == 4

    def test_lists_the_best_first_and_writes_its_recipe(self, short: Recipe) -> None:
        result = sweep(short, trials=3, metric="loss")
        assert result.direction == "minimize"
        losses = []
        for trial in result.trials:
            saved = json.loads((Path(trial.folder) / "result.json").read_text(encoding="utf-8"))
            assert trial.metric == saved["metrics"]["loss"]
            losses.append(saved["metrics"]["loss"])
        assert losses == sorted(losses)
        assert len(set(losses)) == 3
        assert result.best_recipe == f"{short.output}/best.yaml"
        again = train_recipe(Recipe.load(result.best_recipe), quiet=True)
        assert again.metrics["loss"] == losses[0]
        assert again.folder == f"{short.output}/best"

    def test_more_is_better_where_it_is(self, toy_recipe: Make) -> None:
        result = sweep(toy_recipe(), "train.learning_rate=1e-9,1e-2", trials=3)
        assert (result.metric, result.direction) == ("accuracy", "maximize")
        values = [trial.metric for trial in result.trials]
        assert values == sorted(values, key=lambda value: -(value or 0))
        upside_down = toy_recipe(output=f"{toy_recipe().output}-2")
        result = sweep(upside_down, "train.learning_rate=1e-9,1e-2", trials=3, direction="minimize")
        values = [trial.metric for trial in result.trials]
        assert values == sorted(values, key=lambda value: value or 0)
        assert values[0] != values[-1]

    def test_optuna_opens_the_study(self, short: Recipe, tmp_path: Path) -> None:
        file = tmp_path / "elsewhere.db"
        result = sweep(short, trials=2, study=file)
        study = optuna.load_study(study_name="pretune", storage=f"sqlite:///{file}")
        assert study.best_value == result.trials[0].metric
        assert study.best_trial.number == result.trials[0].number

    def test_a_trial_that_diverges_is_a_failed_one(self, short: Recipe) -> None:
        result = sweep(short, "train.learning_rate=1e-3,1e30", trials=6, seed=1)
        assert result.done == 6
        failed = [trial for trial in result.trials if trial.state == "failed"]
        assert {trial.values["train.learning_rate"] for trial in failed} == {1e30}
        assert failed[0].error is not None
        assert "update" in failed[0].error
        finished = [trial for trial in result.trials if trial.state == "finished"]
        assert result.trials == (*finished, *failed)
        assert finished

    def test_values_that_the_recipe_refuses_together_fail_their_trial(
        self, toy_recipe: Make
    ) -> None:
        recipe = toy_recipe(train__max_steps=1, train__batch_ramp={"start": 2})
        over = ("train.batch_size=8,2", "train.batch_ramp.start=2..8")
        result = sweep(recipe, *over, trials=8)
        assert result.done == 8
        for trial in result.trials:
            fits = trial.values["train.batch_ramp.start"] <= trial.values["train.batch_size"]
            assert trial.state == ("finished" if fits else "failed")
            assert fits or "batch_ramp.start is above the full batch" in str(trial.error)
        assert {trial.state for trial in result.trials} == {"finished", "failed"}

    def test_a_model_that_is_not_there_is_no_failed_trial(self, short: Recipe) -> None:
        """The same command goes on once it is there."""
        with pytest.raises(CheckpointError):
            sweep(short.changed({"model.from": "./nowhere"}), trials=2)
        study = optuna.load_study(
            study_name="pretune", storage=f"sqlite:///{short.output}/study.db"
        )
        assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]

    def test_all_failing_is_an_error(self, short: Recipe) -> None:
        with pytest.raises(RunError, match="all 2 trials failed"):
            sweep(short, "train.learning_rate=1e30,1e31", trials=2)


class TestBeforeAnythingStarts:
    @pytest.mark.parametrize(
        ("over", "options", "said"),
        [
            ("train.lr=1e-5..1e-3", {}, "train.learning_rate"),
            (RATES[0], {"metric": "acuracy"}, "Did you mean 'accuracy'?"),
        ],
    )
    def test_mistakes_are_named(
        self, short: Recipe, over: str, options: dict[str, Any], said: str
    ) -> None:
        with pytest.raises((RecipeError, RunError)) as caught:
            sweep(short, over, trials=1, **options)
        assert said in str(caught.value)
        assert not Path(short.output).exists()

    def test_validation_data_is_needed(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(data__validation=None)
        with pytest.raises(RunError, match=r"data\.validation"):
            sweep(recipe, trials=1)
        assert not Path(recipe.output).exists()

    def test_without_optuna_the_way_out_is_said(
        self, short: Recipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(RunError, match=r"pip install 'pretune\[tune\]'"):
            sweep(short, trials=1)
        assert not Path(short.output).exists()

    def test_trials_of_nobody_are_not_touched(self, short: Recipe) -> None:
        train_recipe(short.changed({"output": f"{short.output}/trial-0"}), quiet=True)
        with pytest.raises(RunError, match="knows no such trial"):
            sweep(short, trials=1)

    def test_another_sweep_is_not_continued(self, short: Recipe) -> None:
        sweep(short, trials=1)
        with pytest.raises(
            RunError, match=r"--over train\.learning_rate: .*1e-2 there, 1\.\.2 now"
        ):
            sweep(short, "train.learning_rate=1..2", trials=2)
        with pytest.raises(RunError, match=r"train\.weight_decay: 0\.01 there, 0\.0 now"):
            sweep(short.changed({"train.weight_decay": 0.0}), trials=2)

    def test_a_file_that_is_no_study_is_an_error(self, short: Recipe, tmp_path: Path) -> None:
        file = tmp_path / "no.db"
        file.write_text("this is no database, whatever its name says\n" * 100)
        with pytest.raises(RunError, match="is no study"):
            sweep(short, trials=1, study=file)


class TestGoingOn:
    def test_the_same_sweep_goes_on_as_if_it_had_not_stopped(
        self, short: Recipe, tmp_path: Path
    ) -> None:
        sweep(short, trials=2)
        parts = sweep(short, trials=4)
        whole = sweep(short.changed({"output": str(tmp_path / "whole")}), trials=4)
        one, other = (
            [(trial.number, trial.values, trial.metric) for trial in result.trials]
            for result in (parts, whole)
        )
        assert one == other
        assert len({str(values) for _, values, _ in one}) == 4

    def test_enough_trials_are_enough(self, short: Recipe) -> None:
        assert sweep(short, trials=2) == sweep(short, trials=1)

    def test_two_at_a_time_are_refused(self, short: Recipe) -> None:
        said: list[str] = []

        def during(text: str) -> None:
            if not said:
                said.append(text)
                with pytest.raises(RunError, match="another sweep is at work"):
                    sweep(short, trials=1)

        sweep(short, trials=1, say=during)
        assert said

    @pytest.mark.parametrize(
        "how", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
    )
    def test_after_being_stopped_the_trial_is_repeated(
        self,
        toy_recipe: Make,
        tmp_path: Path,
        how: signal.Signals,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        recipe = toy_recipe(train__epochs=100000, train__log_every=1)
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe.to_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "pretune", "sweep", str(file), "--trials", "2"]
        command += ["--over", RATES[0], "--over", "train.max_steps=3,1000000", "--seed", "4"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        endless = wait_for_a_long_trial(Path(recipe.output), process)
        process.send_signal(how)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == (130 if how == signal.SIGINT else -9)
        if how == signal.SIGINT:
            assert b"stopped" in out
        again = []

        def note(recipe: Recipe, **options: Any) -> None:
            again.append(recipe)
            raise KeyboardInterrupt

        monkeypatch.setattr(sweep_module, "train_recipe", note)
        spaces = (RATES[0], "train.max_steps=3,1000000")
        with pytest.raises(SweepStopped):
            sweep(Recipe.load(file), *spaces, trials=2, seed=4)
        first = Recipe.load(f"{recipe.output}/trial-{endless}/recipe.yaml")
        assert again[0].changed({"output": first.output}) == first
        assert again[0].output != first.output
        study = optuna.load_study(
            study_name="pretune", storage=f"sqlite:///{recipe.output}/study.db"
        )
        assert study.trials[endless].state == optuna.trial.TrialState.FAIL


def wait_for_a_long_trial(output: Path, process: Any) -> int:
    """Wait until a trial without an end is under way, and give its number."""
    for _ in range(1200):
        assert process.poll() is None, process.stderr.read().decode()
        for folder in output.glob("trial-*"):
            number = int(folder.name.removeprefix("trial-"))
            metrics = folder / "metrics.jsonl"
            if metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") > 20:
                return number
        time.sleep(0.05)
    raise AssertionError("no trial came so far")


def test_an_interrupt_keeps_what_is_finished(
    short: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sweep_module.train_recipe, []

    def train_twice(recipe: Recipe, **options: Any) -> Any:
        calls.append(recipe)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(recipe, **options)

    monkeypatch.setattr(sweep_module, "train_recipe", train_twice)
    with pytest.raises(SweepStopped) as caught:
        sweep(short, trials=5)
    result = caught.value.result
    assert result.done == 2
    assert [trial.state for trial in result.trials] == ["finished", "finished", "stopped"]
    assert result.best_recipe is not None
    assert os.path.isfile(result.best_recipe)
    later = sweep(short, trials=3)
    assert later.done == 3
    repeated = next(trial for trial in later.trials if trial.number == 3)
    assert repeated.values == next(t for t in later.trials if t.number == 2).values
