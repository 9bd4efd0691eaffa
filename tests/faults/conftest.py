from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from tests.faults.runs import Running, Zygote, neighbour

_toys = neighbour("conftest")
toy_data, toy_recipe = _toys.toy_data, _toys.toy_recipe


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def start(zygote: Zygote, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Run `pretune` with these arguments, in a process of its own."""
    begun: list[Running] = []

    def make(*argv: str | Path, **options: Any) -> Running:
        log = tmp_path / f"output-{len(begun)}.txt"
        pid = zygote.ask(argv=[str(word) for word in argv], log=str(log), **options)
        begun.append(Running(zygote, pid, log))
        return begun[-1]

    yield make
    for running in begun:
        if Path(f"/proc/{running.pid}").exists():
            running.kill()
            running.wait()


@pytest.fixture
def recipe_file(toy_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """A recipe of a few seconds, as a file; it saves, evaluates and logs often, and has dropout."""

    def make(output: Path, **changes: Any) -> Path:
        usual = {
            "model__dropout": 0.2,
            "train__max_steps": 40,
            "train__eval_every": 5,
            "train__save_every": 1,
            "train__keep": 2,
            "train__log_every": 1,
        }
        recipe = toy_recipe(output=str(output), **{**usual, **changes})
        path = tmp_path / f"{output.name}.yaml"
        path.write_text(yaml12.dump(recipe.to_dict()), encoding="utf-8")
        return path

    return make
