"""A resumed run is bit for bit the run that was never stopped."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pretune.checkpoints.manifest import write_manifest
from pretune.cli.app import app
from pretune.data.batch import FeatureSet
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.text import byte_stream
from pretune.training import run
from pretune.training.checkpoint import TENSORS, VALUES, checkpoints
from pretune.training.run import resume, train_or_resume, train_recipe
from pretune.training.state import generators, restore_generators, seed_everything
from pretune.training.stop import Interrupted
from tests.training.outcomes import StopAt, assert_alike, outcome, stopped_after

Make = Callable[..., Recipe]

#: 48 examples in batches of 8: 6 updates an epoch.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"train__accumulate": 3},
    "token budget": {"train__batch_tokens": 40, "train__batch_size": None},
    "two workers": {"train__workers": 2},
    "average": {"train__ema": 0.9},
    "growing batch": {"train__batch_ramp": {"start": 2, "updates": 8}},
    "frozen backbone": {"train__freeze": "backbone"},
    "frozen layer": {"train__freeze": "embeddings", "train__layer_decay": 0.9},
    "no clipping, wsd": {"train__clip": None, "train__schedule": "wsd"},
    "no validation": {"data__validation": None},
    "guarded": {"train__guard": "rollback"},
    "bf16": {"train__precision": "bf16"},
    "stopped early": {
        "train__epochs": 8,
        "train__patience": 2,
        "train__learning_rate": 1e-12,
        "train__eval_every": 3,
    },
    "in the background": {"train__background_save": True},
}


@pytest.fixture
def stopped(toy_recipe: Make) -> Callable[..., Path]:
    def make(updates: int, folder: str, **changes: Any) -> Path:
        recipe = toy_recipe(output=folder, **changes)
        with stopped_after(updates):
            train_recipe(recipe, quiet=True)
        return Path(recipe.output)

    return make


@pytest.mark.parametrize("case", CASES)
def test_goes_on_as_if_never_stopped(
    case: str, toy_recipe: Make, stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """Stopped inside an epoch, where one ends, and once more after having been resumed."""
    changes = {"train__log_every": 4, "model__dropout": 0.2, **CASES[case]}
    whole = toy_recipe(output=str(tmp_path / "whole"), **changes)
    train_recipe(whole, quiet=True)
    expected = outcome(whole.output)
    for updates in (4, 6):
        folder = stopped(updates, str(tmp_path / f"at-{updates}"), **changes)
        assert not (folder / "result.json").exists()
        resume(folder, quiet=True)
        assert_alike(outcome(folder), expected)


def test_stopped_again_and_again(
    toy_recipe: Make,
    stopped: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = toy_recipe(output=str(tmp_path / "whole"))
    train_recipe(whole, quiet=True)
    folder = stopped(1, str(tmp_path / "parts"))
    monkeypatch.setattr(run, "StopRequest", lambda say: StopAt(2))
    stops = 0
    while not (folder / "result.json").exists():
        try:
            resume(folder, quiet=True)
        except Interrupted:
            stops += 1
    assert stops >= 4
    assert_alike(outcome(folder), outcome(whole.output))


def test_before_the_first_checkpoint_begins_anew(toy_recipe: Make, tmp_path: Path) -> None:
    whole = toy_recipe(output=str(tmp_path / "whole"))
    train_recipe(whole, quiet=True)
    killed = tmp_path / "killed"
    killed.mkdir()
    text = whole.changed({"output": str(killed)}).to_yaml()
    (killed / "recipe.yaml").write_text(text, encoding="utf-8")
    resume(killed, quiet=True)
    assert_alike(outcome(killed), outcome(whole.output))


def test_what_a_killed_process_left_is_removed(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """Also beside the checkpoints: it may die between making a link and giving it its name."""
    folder = stopped(2, str(tmp_path / "run"))
    left = folder / ".last.999999999.tmp"
    left.symlink_to("checkpoints")
    mine = folder / ".mine.tmp"
    mine.touch()
    resume(folder, quiet=True)
    assert not os.path.lexists(left)
    assert mine.exists()


def test_is_a_seek(
    stopped: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch is made that is not trained on: getting to update 9 costs what update 1 would."""
    folder = stopped(9, str(tmp_path / "run"), data__validation=None)
    made: list[int] = []
    original = FeatureSet.batch

    def counting(self: FeatureSet, which: Any, **options: Any) -> Any:
        made.append(len(which))
        return original(self, which, **options)

    monkeypatch.setattr(FeatureSet, "batch", counting)
    result = resume(folder, quiet=True)
    assert result.steps == 16  # 60 examples, two epochs
    assert len(made) == result.steps - 9


def test_a_finished_run_is_left_alone(toy_recipe: Make) -> None:
    recipe = toy_recipe(train__max_steps=2)
    result = train_recipe(recipe, quiet=True)
    before = {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*")}
    assert resume(recipe.output, quiet=True) == result
    assert {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*")} == before


def test_the_same_command_begins_goes_on_and_shows_the_result(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume auto`, whatever is there; the folder itself may be there without a run."""
    whole = toy_recipe(output=str(tmp_path / "whole"), train__max_steps=5)
    train_recipe(whole, quiet=True)
    recipe = whole.changed({"output": str(tmp_path / "run")})
    Path(recipe.output).mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopRequest", lambda say: StopAt(2))
        for _ in range(2):
            with pytest.raises(Interrupted):
                train_or_resume(recipe, quiet=True)
    # Another way of writing it down is no other run.
    result = train_or_resume(recipe.changed({"train.log_every": 10}), quiet=True)
    assert result.steps == 5
    assert_alike(outcome(recipe.output), outcome(whole.output))
    before = {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*")}
    assert train_or_resume(recipe, quiet=True) == result
    assert {p: p.stat().st_mtime_ns for p in Path(recipe.output).rglob("*")} == before
    with pytest.raises(RunError, match=r"train\.learning_rate: 0\.001 there, 0\.5 now"):
        train_or_resume(recipe.changed({"train.learning_rate": 0.5}), quiet=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").touch()
    with pytest.raises(RunError, match="holds files that are not a run of pretune"):
        train_or_resume(recipe.changed({"output": str(foreign)}), quiet=True)


def test_the_command_line_has_it_too(toy_recipe: Make, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(toy_recipe(train__max_steps=1).to_yaml(), encoding="utf-8")
    command = ["train", str(path), "--resume", "auto", "-q"]
    first, second = (CliRunner().invoke(app, command) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    assert second.stdout == first.stdout
    wrong = CliRunner().invoke(app, ["train", "--resume", "auto"])
    assert wrong.exit_code == 2
    assert "pretune train RECIPE_OR_FILE, also with --resume auto" in wrong.output


def test_a_moved_run_goes_on_where_it_is(stopped: Callable[..., Path], tmp_path: Path) -> None:
    folder = stopped(3, str(tmp_path / "here"))
    moved = Path(shutil.move(folder, tmp_path / "there"))
    result = resume(moved, quiet=True)
    assert result.folder == str(moved)
    assert not folder.exists()


class TestRefusals:
    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="no run here"):
            resume(tmp_path)

    def test_a_key_that_changes_what_is_learned(
        self, stopped: Callable[..., Path], tmp_path: Path
    ) -> None:
        folder = stopped(3, str(tmp_path / "run"))
        with pytest.raises(RunError, match=r"train\.learning_rate: 0\.001 there, 0\.1 now"):
            resume(folder, ["train.learning_rate=0.1"])
        assert resume(folder, ["train.log_every=1", "train.guard=skip"], quiet=True).steps == 12

    def test_another_folder(self, stopped: Callable[..., Path], tmp_path: Path) -> None:
        folder = stopped(3, str(tmp_path / "run"))
        with pytest.raises(RunError, match=r"output: .*run there, elsewhere now"):
            resume(folder, ["output=elsewhere"])
        assert resume(folder, [f"output={folder}"], quiet=True).steps == 12

    @pytest.mark.parametrize("name", ["metrics.jsonl", "events"])
    def test_something_else_where_the_log_is(
        self, stopped: Callable[..., Path], tmp_path: Path, name: str
    ) -> None:
        folder = stopped(3, str(tmp_path / "run"))
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
            path.write_text("x", encoding="utf-8")
        else:
            path.unlink()
            path.mkdir()
        with pytest.raises(RunError, match=f"{name}: cannot be written"):
            resume(folder, quiet=True)

    def test_other_data(self, stopped: Callable[..., Path], toy_data: Path, tmp_path: Path) -> None:
        folder = stopped(3, str(tmp_path / "run"))
        with toy_data.open("a", encoding="utf-8") as handle:
            handle.write("a good one more\tgood\n")
        with pytest.raises(RunError, match=r"other data than data\.train"):
            resume(folder, quiet=True)

    def test_other_validation_data(
        self, stopped: Callable[..., Path], toy_data: Path, tmp_path: Path
    ) -> None:
        """The same texts with other labels: the best would be picked among figures of two kinds."""
        validation = tmp_path / "validation.tsv"
        validation.write_bytes(toy_data.read_bytes())
        folder = stopped(3, str(tmp_path / "run"), data__validation=str(validation))
        lines = toy_data.read_text(encoding="utf-8").splitlines()
        text, label = lines[1].split("\t")
        lines[1] = text + "\t" + {"good": "bad", "bad": "good"}[label]
        validation.write_text("\n".join(lines) + "\n", encoding="utf-8")
        with pytest.raises(RunError, match=r"other data than data\.validation"):
            resume(folder, quiet=True)

    def test_not_of_a_checkpoint_that_does_not_know_its_validation_data(
        self, stopped: Callable[..., Path], tmp_path: Path
    ) -> None:
        """As earlier versions wrote them."""
        folder = stopped(3, str(tmp_path / "run"))
        newest = checkpoints(folder)[-1][1]
        values = json.loads((newest / VALUES).read_text(encoding="utf-8"))
        del values["validation"]
        (newest / VALUES).write_text(json.dumps(values), encoding="utf-8")
        write_manifest(newest)
        assert resume(folder, quiet=True).steps == 12

    @pytest.mark.parametrize("text", ["{}", "[]", "null", '{"folder": 1}', '[["a"]]', "{"])
    def test_a_result_that_is_none(self, toy_recipe: Make, text: str) -> None:
        recipe = toy_recipe(train__max_steps=1)
        train_recipe(recipe, quiet=True)
        (Path(recipe.output) / "result.json").write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=r"result\.json: damaged"):
            resume(recipe.output, quiet=True)


class TestDamage:
    @pytest.fixture
    def run_folder(self, stopped: Callable[..., Path], tmp_path: Path) -> Path:
        """Stopped after 8 updates, with checkpoints of 2, 4, 6 and 8."""
        changes = {"train__save_every": 2, "train__keep": 4}
        return stopped(8, str(tmp_path / "run"), **changes)

    @pytest.mark.parametrize("name", ["model.safetensors", TENSORS, VALUES, "manifest.json"])
    @pytest.mark.parametrize("how", ["a bit", "cut", "gone"])
    def test_of_the_newest_goes_back_to_the_one_before(
        self, run_folder: Path, name: str, how: str, toy_recipe: Make, tmp_path: Path
    ) -> None:
        newest = checkpoints(run_folder)[-1][1] / name
        content = newest.read_bytes()
        if how == "gone":
            newest.unlink()
        elif how == "cut":
            newest.write_bytes(content[:-7])
        else:
            middle = len(content) // 2
            newest.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        said: list[str] = []
        assert run.newest_whole(run_folder, say=said.append) == checkpoints(run_folder)[-2][1]
        # A bit in the manifest may be one of another file's name or digest.
        assert str(newest.parent) in said[0] if how == "a bit" else str(newest) in said[0]
        resume(run_folder, quiet=True)
        whole = toy_recipe(output=str(tmp_path / "whole"), train__save_every=2, train__keep=4)
        train_recipe(whole, quiet=True)
        assert_alike(outcome(run_folder), outcome(whole.output))

    def test_of_a_kept_one_does_not_count(self, toy_recipe: Make, tmp_path: Path) -> None:
        """With `keep: 2`, damage to one of two must keep a third."""
        from pretune.bundle.bundle import load
        from pretune.training.checkpoint import RunCheckpoints

        bundle = load(toy_recipe().model.source, bare=True)
        store = RunCheckpoints(tmp_path, bundle, keep=2)
        for step in (1, 2):
            store.save(step, generators(), best=False)
        damaged = tmp_path / "checkpoints" / "step-000002" / "model.safetensors"
        damaged.write_bytes(damaged.read_bytes()[:-1])
        store.save(3, generators(), best=False)
        assert [step for step, _ in checkpoints(tmp_path)] == [1, 2, 3]
        store.save(4, generators(), best=False)
        assert [step for step, _ in checkpoints(tmp_path)] == [3, 4]

    def test_of_all_is_said(self, run_folder: Path) -> None:
        for _, path in checkpoints(run_folder):
            (path / "model.safetensors").unlink()
        assert run.newest_whole(run_folder) is None


@given(seed=st.integers(0, 2**32 - 1), draws=st.integers(0, 5))
@settings(max_examples=20)
def test_generators_go_back_to_where_they_were(seed: int, draws: int) -> None:
    import random

    import torch

    def draw() -> tuple[Any, ...]:
        return (
            torch.rand(3).tolist(),
            torch.randn(1).item(),
            np.random.rand(),  # noqa: NPY002
            np.random.randn(),  # noqa: NPY002
            random.random(),
            random.gauss(0, 1),
        )

    seed_everything(seed)
    for _ in range(draws):
        draw()
    state = generators()
    state.values = json.loads(json.dumps(state.values))
    first = [draw() for _ in range(2)]
    restore_generators(state)
    assert [draw() for _ in range(2)] == first


def test_data_from_a_pipe_are_named_as_a_file(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pipe gave is gone: the stop and the error say how to go on, and that goes on."""
    file = Path(toy_recipe().data.train)
    pipe, folder = tmp_path / "63.tsv", str(tmp_path / "piped")
    os.mkfifo(pipe)
    thread = threading.Thread(target=pipe.write_bytes, args=(file.read_bytes(),))
    thread.start()
    recipe = toy_recipe(output=folder, data__train=str(pipe), data__validation=None)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(run, "StopRequest", lambda say: StopAt(4))
        done = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--quiet"])
    thread.join()
    assert f"pretune train --resume {folder} data.train=FILE" in done.stderr
    pipe.unlink()
    monkeypatch.setattr(byte_stream, "_OPEN_FILE", re.compile(re.escape(str(pipe))))
    with pytest.raises(RunError, match=r"came through a pipe.*gone\n.*data\.train=FILE"):
        resume(folder, quiet=True)
    other = tmp_path / "other.tsv"
    other.write_text(file.read_text(encoding="utf-8").replace("good", "fine"), encoding="utf-8")
    with pytest.raises(RunError, match="trained on other data"):
        resume(folder, {"data.train": str(other)}, quiet=True)
    resume(folder, {"data.train": str(file)}, quiet=True)
    whole = toy_recipe(output=str(tmp_path / "whole"), data__validation=None)
    train_recipe(whole, quiet=True)
    assert_alike(outcome(folder), outcome(whole.output))


@pytest.mark.parametrize(
    ("name", "passing"),
    [
        ("/dev/stdin", True),
        ("/dev/fd/63", True),
        ("/proc/self/fd/0", True),
        ("/dev/fd/x", False),
        ("a.csv", False),
    ],
)
def test_names_of_open_files(name: str, passing: bool) -> None:
    assert byte_stream.is_passing(name) is passing
