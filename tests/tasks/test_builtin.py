"""Tasks by name: built-in ones, published checkpoints, and what packages add."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretune.bundle.bundle import load, save
from pretune.bundle.task_file import TASK_FILE
from pretune.errors import CheckpointError, RecipeError
from pretune.tasks.builtin import _ARCHITECTURES, TASKS, published_task, task_class
from tests.plugins import forget_plugins, install_plugin

RANK = """
from typing import ClassVar, Literal
from pydantic import Field
from pretune.tasks.regression.regress import Regress, RegressOptions

class RankOptions(RegressOptions):
    name: Literal["rank"] = Field("rank", description="A test.")

class Rank(Regress):
    name: ClassVar[str] = "rank"
    options_type = RankOptions
"""


@pytest.fixture
def _looks_again() -> Iterator[None]:
    forget_plugins(TASKS)
    yield
    forget_plugins(TASKS)


def test_tasks_are_called_as_they_are_registered() -> None:
    assert {name: kind.name for name, kind in TASKS.items()} == {name: name for name in TASKS}


def test_an_unknown_task_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"no task is called 'clasify'\n.*'classify'"):
        task_class("clasify")
    with pytest.raises(RecipeError, match="no task is called"):
        task_class(["classify"])


@pytest.mark.parametrize("end", _ARCHITECTURES)
@pytest.mark.parametrize("kind", ["single_label_classification", "regression", None])
def test_the_task_of_a_published_checkpoint_is_what_asking_every_task_gives(
    end: str, kind: str | None
) -> None:
    config = {
        "architectures": [end if end.startswith("Marian") else f"Bert{end}"],
        "problem_type": kind,
        "num_labels": 1,
    }
    every = (task.from_config(config) for task in TASKS.values())
    wanted = next(task for task in every if task is not None)
    found = published_task(config)
    assert found is not None
    assert (found.name, found.state()) == (wanted.name, wanted.state())


def test_a_bare_model_has_no_task() -> None:
    assert published_task({"architectures": ["BertModel"]}) is None
    assert published_task({}) is None


def test_asking_for_one_task_imports_no_other() -> None:
    code = (
        "import sys; from pretune.tasks.builtin import TASKS; TASKS['regress']; "
        "print(*(m.split('.')[2] for m in sys.modules if m.startswith('pretune.tasks.')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    rooms = {task.split(".")[2] for task in TASKS.builtin.values()}
    assert rooms & set(found) == {"regression"}


@pytest.mark.usefixtures("_looks_again")
def test_a_run_of_a_packages_task_names_the_package(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plugin = tmp_path / "run", tmp_path / "site"
    run.mkdir()
    plugin.mkdir()
    with monkeypatch.context() as installed:
        line = {"pretune.tasks": "rank = pretune_rank:Rank"}
        install_plugin(plugin, installed, "pretune-rank", RANK, line)
        kind = task_class("rank")
        save(load(tiny_folder, task=kind(kind.options_type(name="rank", max_length=16))), run)
        assert json.loads((run / TASK_FILE).read_text())["package"] == "pretune-rank"
        again = load(run)
        assert again.task is not None
        assert again.task.name == "rank"
        assert again.report is not None
        assert not again.report.missing
    forget_plugins(TASKS)
    with pytest.raises(
        CheckpointError, match=r"'rank'.*pretune-rank[^\n]*\n.*pip install"
    ) as error:
        load(run)
    assert "damaged" not in str(error.value)


def test_a_run_of_a_built_in_task_names_no_package(tiny_folder: Path, tmp_path: Path) -> None:
    kind = task_class("regress")
    save(load(tiny_folder, task=kind(kind.options_type(name="regress", max_length=16))), tmp_path)
    assert json.loads((tmp_path / TASK_FILE).read_text()).keys() == {"options", "state", "columns"}


@pytest.mark.parametrize("package", ["x; rm -rf ~", "\x1b[31m", "", 3])
def test_a_package_that_cannot_be_one_is_not_repeated(
    package: object, tiny_folder: Path, tmp_path: Path
) -> None:
    kind = task_class("regress")
    save(load(tiny_folder, task=kind(kind.options_type(name="regress", max_length=16))), tmp_path)
    saved = json.loads((tmp_path / TASK_FILE).read_text())
    saved["package"], saved["options"]["name"] = package, "rank"
    (tmp_path / TASK_FILE).write_text(json.dumps(saved))
    with pytest.raises(CheckpointError, match="damaged") as error:
        load(tmp_path)
    assert "pip install" not in str(error.value)
    assert "\x1b" not in str(error.value)
