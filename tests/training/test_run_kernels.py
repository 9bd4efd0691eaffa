"""A run keeps to the kernels that it chose when it began."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pretune.models import kernels
from pretune.models.kernels import Choice, ShapeClass, Timing
from pretune.models.products import ONEDNN, PLAIN
from pretune.recipe.recipe import Recipe
from pretune.training.distributed import World
from pretune.training.run import resume, train_recipe
from pretune.training.run_kernels import KERNELS_FILE, chosen_kernels, keep_kernels
from tests.training.outcomes import assert_alike, outcome, stopped_after

CHOICE = Choice("measured", {ShapeClass("forward", 128, 384, 384): ONEDNN}, kernels.machine())


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Kernels are measured, of weights however small; the test says which kernel is faster."""
    monkeypatch.setenv("PRETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "SMALLEST", 0)

    def faster(kernel: str) -> None:
        monkeypatch.setattr(kernels, "timing", lambda shape: Timing(kernel, {}))

    kernels.forget()
    yield faster
    monkeypatch.undo()
    kernels.forget()


def test_a_resumed_run_keeps_to_what_it_began_with(
    toy_recipe: Callable[..., Recipe],
    measuring: Callable[[str], None],
    tmp_path: Path,
) -> None:
    measuring(ONEDNN)
    whole, other = (toy_recipe(output=str(tmp_path / name)) for name in ("whole", "other"))
    result = train_recipe(whole, quiet=True)
    assert result.environment["matmul"].startswith("measured: oneDNN ")
    stopped = toy_recipe(output=str(tmp_path / "stopped"))
    with stopped_after(4):
        train_recipe(stopped, quiet=True)
    # The other kernel would be chosen now.
    measuring(PLAIN)
    resume(stopped.output, quiet=True)
    assert_alike(outcome(stopped.output), outcome(whole.output))
    train_recipe(other, quiet=True)
    texts = [(tmp_path / name / KERNELS_FILE).read_text() for name in ("whole", "stopped", "other")]
    assert texts[0] == texts[1] != texts[2]


def choose(folder: Path, **changes: Any) -> tuple[Choice, list[str]]:
    lines: list[str] = []
    how: dict[str, Any] = {"world": World(), "resumed": True, "say": lines.append, **changes}
    return chosen_kernels(folder, nn.Linear(4, 4), **how), lines


def test_what_was_chosen_is_read_back(tmp_path: Path) -> None:
    keep_kernels(tmp_path, CHOICE)
    assert choose(tmp_path) == (CHOICE, [])
    # A new run in the same folder chooses anew.
    chosen, _ = choose(tmp_path, resumed=False)
    assert chosen.mode == "default"


def test_another_machine_is_told(tmp_path: Path) -> None:
    elsewhere = Choice(CHOICE.mode, CHOICE.kernels, {**CHOICE.machine, "torch": "1.0"})
    keep_kernels(tmp_path, elsewhere)
    chosen, (line,) = choose(tmp_path)
    assert chosen == elsewhere
    assert "another machine" in line


def test_the_environment_forces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_kernels(tmp_path, CHOICE)
    monkeypatch.setattr(kernels, "mode", lambda: ONEDNN)
    chosen, (line,) = choose(tmp_path)
    assert chosen.mode == ONEDNN
    assert "PRETUNE_MATMUL asks for oneDNN" in line


@pytest.mark.parametrize(
    "text", ["{", "{}", json.dumps({**CHOICE.to_dict(), "kernels": {"x": "y"}})]
)
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / KERNELS_FILE).write_text(text, encoding="utf-8")
    chosen, (line,) = choose(tmp_path)
    assert chosen.mode == "default"
    assert "chosen again" in line


def test_a_run_of_an_earlier_version_has_no_file(tmp_path: Path) -> None:
    chosen, lines = choose(tmp_path)
    assert (chosen.mode, lines) == ("default", [])


class SecondOfTwo(World):
    """Sees what the first process sent."""

    def gather(self, mine: Any) -> list[Any]:
        assert mine is None, "only the main process chooses"
        return [CHOICE, mine]


def test_processes_keep_to_the_choice_of_the_first(tmp_path: Path) -> None:
    chosen, _ = choose(tmp_path, resumed=False, world=SecondOfTwo(rank=1, size=2))
    assert chosen == CHOICE
