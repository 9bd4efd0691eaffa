from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from tests.faults.runs import Running, Zygote, neighbour

_toys, _outcomes = neighbour("conftest"), neighbour("outcomes")
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
            "train__max_steps": 24,
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


@pytest.fixture(scope="session")
def outcomes() -> dict[str, dict[str, Any]]:
    """The outcomes of runs that nothing stopped, by what their recipes change."""
    return {}


@pytest.fixture
def uninterrupted(
    start: Callable[..., Running],
    recipe_file: Callable[..., Path],
    tmp_path: Path,
    outcomes: dict[str, dict[str, Any]],
) -> Callable[..., dict[str, Any]]:
    """The outcome of a run that nothing stops; each is trained once in a session.

    How it is written, in the background or not, is no part of it.
    """

    def make(**changes: Any) -> dict[str, Any]:
        changes.pop("train__background_save", None)
        key = repr(sorted(changes.items()))
        if key not in outcomes:
            whole = tmp_path / "whole"
            running = start("train", recipe_file(whole, **changes), "-q")
            assert running.wait() == 0, running.said()
            outcomes[key] = _outcomes.outcome(whole)
        return outcomes[key]

    return make
