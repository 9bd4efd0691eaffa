"""Callbacks: what they are told, that they change nothing, and what becomes of one that fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pretune
from pretune.errors import OwnCodeError, PretuneError, RecipeError
from pretune.plugins import KINDS
from pretune.recipe.recipe import Recipe
from pretune.training.callbacks import Callback, Moment, named_callbacks
from pretune.training.run import resume, train_recipe
from tests.training.groups import Together
from tests.training.outcomes import assert_alike, outcome

Make = Callable[..., Recipe]


class Diary(Callback):
    """Writes down what happens, and disturbs as much as it can."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.moments: list[Moment] = []

    def _note(self, event: str, moment: Moment) -> None:
        self.events.append((event, moment.step))
        self.moments.append(moment)
        assert not moment.model.training
        assert not torch.is_grad_enabled()
        # What would change dropout and the order of anything after it.
        torch.rand(3)
        np.random.rand(3)  # noqa: NPY002
        random.random()
        moment.model.train()

    def on_step(self, moment: Moment) -> None:
        self._note("step", moment)

    def on_evaluation(self, moment: Moment) -> None:
        self._note("evaluation", moment)

    def on_checkpoint(self, moment: Moment) -> None:
        assert moment.folder is not None
        assert (moment.folder / "last" / "model.safetensors").is_file()
        self._note("checkpoint", moment)

    def on_end(self, moment: Moment) -> None:
        self._note("end", moment)


class Fails:
    """Fails once, at an event after an update; only this event has a method."""

    def __init__(self, event: str, step: int) -> None:
        self.step, self.failed = step, False
        setattr(self, f"on_{event}", self.fail)

    def fail(self, moment: Moment) -> None:
        if moment.step == self.step and not self.failed:
            self.failed = True
            raise ValueError("no room in the diary")


def brief(make: Make, **more: Any) -> Recipe:
    """4 updates in 2 epochs, with dropout."""
    changes = {"train__batch_size": 24, "train__epochs": 2, "model__dropout": 0.2}
    return make(**{**changes, **more})


def test_callbacks_are_told_in_order_and_change_nothing(toy_recipe: Make) -> None:
    recipe, diary = brief(toy_recipe), Diary()
    with_diary = pretune.train(recipe, callbacks=[diary], quiet=True)
    each = ["step", "step", "evaluation", "checkpoint"]
    wanted = [(event, step) for event, step in zip(each * 2, (1, 2, 2, 2, 3, 4, 4, 4), strict=True)]
    assert diary.events == [*wanted, ("end", 4)]
    step, evaluation, end = diary.moments[0], diary.moments[2], diary.moments[-1]
    assert set(step.figures) == {"loss", "learning_rate", "gradient_norm"}
    assert (step.total, step.epoch, step.task.name) == (4, 0.5, "classify")
    assert evaluation.figures["accuracy"] == evaluation.figures["accuracy"]
    assert end.figures == with_diary.metrics
    plain = recipe.changed({"output": recipe.output + "-plain"})
    train_recipe(plain, quiet=True)
    assert_alike(outcome(Path(recipe.output)), outcome(Path(plain.output)))


@pytest.mark.parametrize(
    ("event", "step"),
    [
        ("step", 2),
        pytest.param("step", 1, marks=pytest.mark.slow),
        pytest.param("evaluation", 2, marks=pytest.mark.slow),
        pytest.param("checkpoint", 4, marks=pytest.mark.slow),
        pytest.param("end", 4, marks=pytest.mark.slow),
    ],
)
def test_one_that_fails_ends_the_run_with_its_state_saved(
    event: str, step: int, toy_recipe: Make
) -> None:
    recipe = brief(toy_recipe)
    with pytest.raises(OwnCodeError) as caught:
        train_recipe(recipe, callbacks=[Fails(event, step)], quiet=True)
    told = str(caught.value)
    assert (
        f"the callback Fails failed in on_{event}, after update {step}: ValueError: no room" in told
    )
    assert "(test_callbacks.py, line " in told
    assert f"pretune train --resume {recipe.output}" in told
    # Nothing of the run is lost: it ends as one without callbacks does.
    done = resume(recipe.output, quiet=True)
    plain = recipe.changed({"output": recipe.output + "-plain"})
    assert done.metrics == train_recipe(plain, quiet=True).metrics
    assert_alike(outcome(Path(recipe.output)), outcome(Path(plain.output)))


@pytest.mark.slow
@pytest.mark.usefixtures("_no_names")
@pytest.mark.parametrize("kind", ["metric", "loss"])
def test_a_metric_or_a_loss_that_fails_loses_nothing(kind: str, toy_recipe: Make) -> None:
    calls = []

    def own(first: Any, second: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("not today")
        if kind == "metric":
            return 0.5
        return torch.nn.functional.cross_entropy(first, second, reduction="none")

    pretune.register(kind, "own")(own)
    key = {"metric": {"task__metrics": ["own"]}, "loss": {"task__criterion": "own"}}[kind]
    recipe = brief(toy_recipe, train__eval_every=1, **key)
    with pytest.raises(
        OwnCodeError, match=r"own failed: ValueError: not today \(test_callb"
    ) as caught:
        train_recipe(recipe, quiet=True)
    assert f"the run goes on: pretune train --resume {recipe.output}" in str(caught.value)
    done = resume(recipe.output, quiet=True)
    plain = recipe.changed({"output": recipe.output + "-plain"})
    assert done.metrics == train_recipe(plain, quiet=True).metrics
    assert_alike(outcome(Path(recipe.output)), outcome(Path(plain.output)))


def test_one_may_ask_for_an_end(toy_recipe: Make, capsys: pytest.CaptureFixture[str]) -> None:
    class Enough:
        def on_step(self, moment: Moment) -> None:
            if moment.step == 3:
                moment.stop("good enough")

    result = pretune.train(brief(toy_recipe), callbacks=[Enough()])  # type: ignore[list-item]
    assert (result.steps, result.stopped_early) == (3, True)
    assert result.metrics["accuracy"] >= 0
    assert "good enough: a callback asks to stop, after update 3" in capsys.readouterr().err


@pytest.fixture
def _no_names() -> Iterator[None]:
    yield
    for registry in KINDS.values():
        for name in [*registry.own]:
            registry.own.discard(name)
            registry._loaded.pop(name)


@pytest.mark.usefixtures("_no_names")
def test_a_recipe_names_them(toy_recipe: Make) -> None:
    pretune.register("callback")(Diary)
    diary = Diary()
    pretune.register("callback", "kept")(diary)
    recipe = brief(toy_recipe, train__callbacks=["Diary", "kept"], train__max_steps=1)
    assert recipe.to_dict()["train"]["callbacks"] == ["Diary", "kept"]
    assert [type(own) for own in named_callbacks(["Diary"])] == [Diary]
    train_recipe(recipe, quiet=True)
    assert [event for event, _ in diary.events] == ["step", "evaluation", "checkpoint", "end"]
    with pytest.raises(RecipeError, match=r"no callback is called 'Dairy'\n.*'Diary'"):
        named_callbacks(["Dairy"])
    pretune.register("callback", "needs")(Fails)
    with pytest.raises(RecipeError, match=r"train\.callbacks: needs cannot be made: TypeError"):
        named_callbacks(["needs"])


def test_recipes_without_callbacks_are_written_as_before(toy_recipe: Make) -> None:
    written = toy_recipe().to_dict()
    assert "callbacks" not in written["train"]
    assert "fold" not in written["data"]


@pytest.mark.parametrize("wrong", [Diary, object(), "Diary"])
def test_what_is_no_callback_is_refused(wrong: Any, toy_recipe: Make) -> None:
    with pytest.raises(PretuneError, match="callbacks: expected an object with on_step or"):
        train_recipe(toy_recipe(), callbacks=[wrong], quiet=True)
    assert not Path(toy_recipe().output).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["enough", "fails"])
def test_several_processes_end_together(name: str, toy_recipe: Make, together: Together) -> None:
    recipe = brief(toy_recipe, train__callbacks=[name], train__eval_every=1)
    together.train(2, recipe, change="callbacks")
    folder = Path(recipe.output)
    steps = [path.name for path in (folder / "checkpoints").iterdir()]
    assert max(steps) == "step-000002"
    assert (folder / "result.json").is_file() == (name == "enough")
    if name == "fails":
        assert resume(recipe.output, ["train.callbacks=[]"], quiet=True).steps == 4
