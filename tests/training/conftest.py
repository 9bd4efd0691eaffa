from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.recipe.recipe import Recipe
from tests.storage.bucket import store

__all__ = ["store", "toy_data", "toy_recipe"]


@pytest.fixture
def toy_data(tmp_path: Path) -> Path:
    """60 films that are good or bad, told by one word among others."""
    chance = random.Random(0)
    lines = ["text\tlabel"]
    for _ in range(60):
        word = chance.choice(["good", "bad"])
        others = [
            chance.choice(["the", "film", "un", "x1", "z"]) for _ in range(chance.randint(0, 9))
        ]
        others.insert(chance.randint(0, len(others)), word)
        lines.append(f"{' '.join(others)}\t{word}")
    path = tmp_path / "films.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def toy_recipe(tiny_folder: Path, toy_data: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe that takes a second; keyword arguments with `__` for the dot change it."""

    def make(**changes: Any) -> Recipe:
        recipe = Recipe.of(
            {
                "task": {"name": "classify", "max_length": 16},
                "model": {"from": str(tiny_folder)},
                "data": {"train": str(toy_data), "validation": 0.2},
                "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
                "output": str(tmp_path / "run"),
            }
        )
        return recipe.changed({key.replace("__", "."): value for key, value in changes.items()})

    return make
