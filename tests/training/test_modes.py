"""Other ways of computing, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.bundle.bundle import load
from pretune.errors import RunError
from pretune.models.backbone import Backbone
from pretune.recipe.recipe import Recipe
from pretune.training.modes import determinism
from pretune.training.run import train_recipe

Make = Callable[..., Recipe]


def weights_after(recipe: Recipe) -> dict[str, Any]:
    train_recipe(recipe, quiet=True)
    return load(Path(recipe.output) / "last").model.state_dict()


def test_recomputing_changes_nothing(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: the second time must draw the same masks."""
    calls = []
    from pretune.models import backbone

    original = backbone.checkpoint
    monkeypatch.setattr(
        backbone, "checkpoint", lambda *a, **k: calls.append(1) or original(*a, **k)
    )
    changes = {"model__dropout": 0.2, "train__max_steps": 4}
    plain = weights_after(toy_recipe(**changes))
    assert not calls
    recomputed = weights_after(
        toy_recipe(
            **changes, train__activation_checkpointing=True, output=str(tmp_path / "recomputed")
        )
    )
    assert len(calls) == 2 * 4  # two layers, four updates, and none in evaluation
    for name, expected in plain.items():
        assert torch.equal(recomputed[name], expected), name


def test_compiling_is_refused_on_a_cpu(toy_recipe: Make) -> None:
    with pytest.raises(RunError, match=r"train\.compile.*for CUDA"):
        train_recipe(toy_recipe(train__compile=True), quiet=True)


def test_determinism_is_asked_for_and_left_as_it_was(toy_recipe: Make, tmp_path: Path) -> None:
    asked = []

    def look(self: Backbone, *args: Any, **options: Any) -> Any:
        asked.append(torch.are_deterministic_algorithms_enabled())
        return original(self, *args, **options)

    original = Backbone.forward
    Backbone.forward = look  # type: ignore[method-assign]
    try:
        strict = weights_after(toy_recipe(train__deterministic=True))
    finally:
        Backbone.forward = original  # type: ignore[method-assign]
    assert asked
    assert all(asked)
    assert not torch.are_deterministic_algorithms_enabled()
    usual = weights_after(toy_recipe(output=str(tmp_path / "usual")))
    for name, expected in usual.items():
        assert torch.equal(strict[name], expected), name


def test_determinism_ends_with_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), determinism(True):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
