"""The copy of a run in object storage: `memory://` here, S3 and kills in tests/storage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pretune.checkpoints.run_copy import POINTER, read_pointer
from pretune.checkpoints.source import find_source
from pretune.cli.app import app
from pretune.errors import DataError, PretuneError, RecipeError, RunError
from pretune.recipe.recipe import Recipe
from pretune.storage import object_store
from pretune.training import mirror
from pretune.training.mirror import Mirror
from pretune.training.run import resume, train_or_resume, train_recipe
from tests.training.outcomes import assert_alike, outcome, stopped_after

Make = Callable[..., Recipe]
PLACE = "memory://bucket/runs/films"


@pytest.fixture
def recipe(toy_recipe: Make, store: Any) -> Recipe:
    """Six updates with a checkpoint after each, and a copy."""
    return toy_recipe(train__max_steps=6, train__save_every=1, train__mirror=PLACE)


def names(store: Any) -> set[str]:
    return {name.removeprefix("/bucket/runs/films/") for name in store.find("/bucket/runs/films")}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run, but for its lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stopped(recipe: Recipe, step: int) -> None:
    """Train until a signal comes after so many updates."""
    with stopped_after(step):
        train_recipe(recipe, quiet=True)


def cut_off(recipe: Recipe, step: int) -> None:
    """Train until a signal comes after so many updates, and lose the machine."""
    stopped(recipe, step)
    shutil.rmtree(recipe.output)


def test_all_of_a_finished_run_is_there(recipe: Recipe, store: Any, tmp_path: Path) -> None:
    train_recipe(recipe, quiet=True)
    run = Path(recipe.output)
    local = {name for name in contents(run) if name.partition("/")[0] not in ("best", "last")}
    assert names(store) == local | {POINTER}
    pointer = read_pointer(PLACE)
    assert pointer is not None
    assert pointer.last == (run / "last").resolve().name
    assert pointer.best == (run / "best").resolve().name
    # Only the checkpoints that the run has kept.
    assert set(pointer.whole) == {path.name for path in (run / "checkpoints").iterdir()}
    for name in local:
        assert store.cat_file(f"/bucket/runs/films/{name}") == (run / name).read_bytes()


def test_another_machine_goes_on_bit_for_bit(
    recipe: Recipe, toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe.changed({"output": str(tmp_path / "whole"), "train.mirror": None})
    train_recipe(whole, quiet=True)
    cut_off(recipe, 3)
    train_or_resume(recipe, quiet=True)
    assert_alike(outcome(recipe.output), outcome(whole.output))
    # And a third finds it finished, without training.
    shutil.rmtree(recipe.output)
    monkeypatch.setattr("pretune.training.run._Run.go", None)
    assert train_or_resume(recipe, quiet=True).steps == 6
    assert resume(recipe.output).steps == 6


def test_the_copy_itself_is_resumed(recipe: Recipe, store: Any) -> None:
    cut_off(recipe, 2)
    done = CliRunner().invoke(app, ["train", "--resume", PLACE])
    assert done.exit_code == 0, done.output
    assert json.loads((Path(recipe.output) / "result.json").read_text())["steps"] == 6
    assert json.loads(store.cat_file("/bucket/runs/films/result.json"))["steps"] == 6


def test_a_machine_that_is_behind_takes_what_another_did(recipe: Recipe, tmp_path: Path) -> None:
    """The first machine comes back with its disk after the second has gone on."""
    run, disk = Path(recipe.output), tmp_path / "disk"
    stopped(recipe, 2)
    run.rename(disk)
    train_or_resume(recipe, quiet=True)
    ended = contents(run)
    shutil.rmtree(run)
    disk.rename(run)
    assert train_or_resume(recipe, quiet=True).steps == 6
    assert contents(run).items() >= ended.items()


def test_one_that_is_ahead_keeps_what_it_did(recipe: Recipe, store: Any) -> None:
    train_recipe(recipe.changed({"train.max_steps": 6}), quiet=True)
    before = contents(Path(recipe.output))
    pointer = read_pointer(PLACE)
    assert pointer is not None
    older = pointer._replace(whole=("step-000002",), last="step-000002", best=None)
    store.pipe_file(f"/bucket/runs/films/{POINTER}", older.to_json().encode())
    train_or_resume(recipe, quiet=True)
    assert contents(Path(recipe.output)) == before


def test_a_fetch_that_was_cut_off_is_repeated(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(recipe, 3)
    calls = []

    def lost(stored: Any, target: Path) -> None:
        calls.append(target)
        if len(calls) == 4:
            raise DataError(f"{stored.url}: cannot be reached")
        object_store.fetch(stored, target)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "fetch", lost)
        with pytest.raises(DataError, match="cannot be reached"):
            train_or_resume(recipe, quiet=True)
    assert not (Path(recipe.output) / "recipe.yaml").exists()
    assert train_or_resume(recipe, quiet=True).steps == 6


def test_a_predictor_reads_the_best(recipe: Recipe, store: Any) -> None:
    train_recipe(recipe, quiet=True)
    best = contents((Path(recipe.output) / "best").resolve())
    found = contents(find_source(PLACE))
    assert found["model.safetensors"] == best["model.safetensors"]
    assert found["config.json"] == best["config.json"]


def test_two_runs_do_not_share_a_copy(recipe: Recipe, store: Any, tmp_path: Path) -> None:
    train_recipe(recipe, quiet=True)
    other = recipe.changed({"output": str(tmp_path / "other"), "seed": 5})
    with pytest.raises(RunError, match=r"runs/films: already holds the copy of a run") as caught:
        train_recipe(other, quiet=True)
    assert "--resume auto" in str(caught.value)
    with pytest.raises(PretuneError, match="seed: 0 there, 5 now"):
        train_or_resume(other, quiet=True)
    assert not Path(other.output).exists()
    train_recipe(other.changed({"train.max_steps": 2}), overwrite=True, quiet=True)
    assert json.loads(store.cat_file("/bucket/runs/films/result.json"))["steps"] == 2


def test_storage_that_is_gone_for_a_while_stops_nothing(
    recipe: Recipe, store: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def sometimes(file: Path, place: str) -> None:
        tries.append(place)
        if len(tries) == 3:
            raise DataError(f"{place}: cannot be reached")
        object_store.send_file(file, place)

    monkeypatch.setattr(mirror, "send_file", sometimes)
    said: list[str] = []
    monkeypatch.setattr(
        "pretune.training.logging.Reporter.say", lambda self, text: said.append(text)
    )
    train_recipe(recipe)
    assert sum("it is tried again with the next checkpoint" in text for text in said) == 1
    assert "result.json" in names(store)


def test_storage_that_stays_away_is_told_at_the_end(
    recipe: Recipe, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(file: Path, place: str) -> None:
        raise DataError(f"{place}: cannot be reached", "Check the name.")

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "send_file", never)
        with pytest.raises(RunError, match="the run is whole, but its copy is not") as caught:
            train_recipe(recipe, quiet=True)
    assert f"pretune train --resume {recipe.output}" in str(caught.value)
    assert not store.exists("/bucket/runs/films/result.json")
    resume(recipe.output)
    assert store.exists("/bucket/runs/films/result.json")


def test_the_pointer_names_only_what_has_arrived(
    recipe: Recipe, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the machine is lost, what the copy names is whole."""
    seen = []

    def looking(file: Path, place: str) -> None:
        object_store.send_file(file, place)
        pointer = read_pointer(PLACE)
        if pointer is not None:
            there = names(store)
            seen.append(pointer.last)
            for name in pointer.whole:
                manifest = json.loads(
                    store.cat_file(f"/bucket/runs/films/checkpoints/{name}/manifest.json")
                )
                assert {f"checkpoints/{name}/{file}" for file in manifest["files"]} <= there

    monkeypatch.setattr(mirror, "send_file", looking)
    train_recipe(recipe, quiet=True)
    assert seen


def test_several_runs_have_a_copy_each(recipe: Recipe, store: Any) -> None:
    from pretune.training.several_runs import train_seeds

    train_seeds(recipe.changed({"train.max_steps": 1}), 2, quiet=True)
    assert {name.partition("/")[0] for name in names(store)} == {"seed-0", "seed-1"}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"checkpoints": [], "last": "x", "best": null}',
        '{"checkpoints": ["../../x"], "last": "../../x", "best": null}',
        '{"checkpoints": ["step-000001"], "last": "step-000002", "best": null}',
    ],
)
def test_a_pointer_that_is_none_is_refused(text: str, store: Any) -> None:
    store.pipe_file(f"/bucket/runs/films/{POINTER}", text.encode())
    with pytest.raises(DataError, match=r"mirror\.json: does not name the checkpoints of a run"):
        read_pointer(PLACE)


def test_names_that_lead_out_are_refused(
    recipe: Recipe, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(recipe, 2)
    real = mirror.listed

    def with_another(place: str) -> Any:
        found = real(place)
        return [*found, found[0].__class__(f"{PLACE}/events/../../../evil", 3, "1")]

    monkeypatch.setattr(mirror, "listed", with_another)
    with pytest.raises(DataError, match="not a name of a file"):
        train_or_resume(recipe, quiet=True)


def test_a_folder_is_no_place(toy_recipe: Make) -> None:
    with pytest.raises(RecipeError, match=r"train\.mirror: should be a place in object storage"):
        toy_recipe(train__mirror="runs/copy")


def test_removed_checkpoints_go(recipe: Recipe, store: Any, tmp_path: Path) -> None:
    train_recipe(recipe, quiet=True)
    run = Path(recipe.output)
    store.pipe_file("/bucket/runs/films/checkpoints/step-000099/model.safetensors", b"half")
    store.pipe_file("/bucket/runs/films/checkpoints/notes.txt", b"mine")
    Mirror(PLACE, run, lambda text: None).send()
    assert not store.exists("/bucket/runs/films/checkpoints/step-000099")
    assert store.exists("/bucket/runs/films/checkpoints/notes.txt")
