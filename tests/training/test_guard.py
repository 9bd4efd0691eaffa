"""Numbers that go wrong: seen before the update, explained, and survived."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import PackedBatch
from pretune.data.batch_order import Cursor
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.recipe.schema import GuardSection
from pretune.tasks.base import Loss
from pretune.tasks.classification.classify import Classify
from pretune.tasks.features import featurize
from pretune.training.checkpoint import VALUES, checkpoints
from pretune.training.data import read_data
from pretune.training.guard import Guard, robust_z
from pretune.training.logging import Reporter
from pretune.training.loop import Trainer
from pretune.training.run import resume, train_recipe
from pretune.training.state import seed_everything

Make = Callable[..., Recipe]
#: The batch whose labels are all wrong: update 31 of the run.
POISONED = 30


class TestRobustZ:
    def test_is_that_of_the_formula(self) -> None:
        recent = [1.0, 2.0, 3.0, 4.0, 100.0]
        # The median is 3, the distances 2 1 0 1 97, their median 1.
        assert robust_z(9.0, recent) == pytest.approx(6 / 1.4826)

    def test_of_normal_losses_is_about_the_ordinary_one(self) -> None:
        sample = np.random.default_rng(0).normal(5.0, 1.0, 4001).tolist()
        assert robust_z(8.0, sample) == pytest.approx(3.0, abs=0.15)

    @given(st.lists(st.floats(1, 10), min_size=8, max_size=30), st.floats(0.1, 100))
    def test_knows_no_unit(self, recent: list[float], unit: float) -> None:
        z = robust_z(20.0, recent)
        assert robust_z(20.0 * unit, [x * unit for x in recent]) == pytest.approx(z, rel=1e-6)

    def test_a_loss_that_does_not_move_allows_ripples(self) -> None:
        assert robust_z(1.01, [1.0] * 20) < 1


class TestGuard:
    def watching(self, **options: Any) -> Guard:
        guard = Guard(GuardSection(action="skip", window=16, **options))
        for loss in (1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 1.1):
            assert guard.judge(loss, 1.0) is None
            guard.accept(loss)
        return guard

    def test_sees_a_spike(self) -> None:
        trouble = self.watching().judge(4.0, 1.0)
        assert trouble is not None
        assert trouble.finite
        assert "the loss jumped to 4 from a usual 1 (" in trouble.what

    def test_waits_for_several_in_a_row_if_told(self) -> None:
        guard = self.watching(patience=2)
        assert guard.judge(4.0, 1.0) is None
        assert guard.judge(1.0, 1.0) is None  # only one after all
        assert guard.judge(4.0, 1.0) is None
        assert guard.judge(4.0, 1.0) is not None

    def test_few_losses_are_nothing_to_judge_by(self) -> None:
        guard = Guard(GuardSection(action="skip"))
        guard.accept(1.0)
        assert guard.judge(1e9, 1.0) is None

    def test_does_not_look_at_spikes_when_it_would_stop(self) -> None:
        guard = Guard(GuardSection())
        for _ in range(64):
            guard.accept(1.0)
        assert guard.judge(1e9, 1.0) is None

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_always_sees_what_is_not_finite(self, bad: float) -> None:
        guard = Guard(GuardSection())
        loss, gradient = guard.judge(bad, 1.0), guard.judge(1.0, bad)
        assert loss is not None
        assert "loss" in loss.what
        assert gradient is not None
        assert "gradient" in gradient.what

    def test_goes_on_after_being_saved(self) -> None:
        guard = self.watching(patience=2)
        guard.judge(4.0, 1.0)
        again = Guard(guard.options)
        again.restore(guard.to_dict())
        assert again.judge(4.0, 1.0) == guard.judge(4.0, 1.0) is not None


@pytest.fixture
def poisoned(toy_recipe: Make, tmp_path: Path) -> tuple[Recipe, set[int]]:
    """A recipe whose update `POISONED` meets a batch of nothing but wrong labels; their lines."""
    chance = random.Random(1)
    rows = []
    for i in range(400):
        word = ("good", "bad")[i % 2]
        others = [chance.choice(["the", "film", "un", "z"]) for _ in range(chance.randint(0, 5))]
        rows.append([f"{' '.join(others)} {word}", word])
    recipe = toy_recipe(
        data__train=str(tmp_path / "poison.tsv"),
        data__validation=None,
        train__max_steps=45,
        train__learning_rate=1e-2,
        train__save_every=10,
        train__guard={"action": "rollback", "window": 32, "margin": 1},
    )
    path = Path(recipe.data.train)

    def write() -> None:
        lines = ["\t".join(row) for row in [["text", "label"], *rows]]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    write()
    trainer, _ = trainer_of(recipe)
    at = Cursor()
    for _ in range(POISONED):
        at = trainer.order.take(at, 8)[1]
    wrong = trainer.train.records[trainer.order.take(at, 8)[0]]
    for row in wrong:
        rows[row][1] = "bad" if rows[row][1] == "good" else "good"
    write()
    return recipe, {int(row) + 2 for row in wrong}


def trainer_of(recipe: Recipe, task: Classify | None = None) -> tuple[Trainer, Bundle]:
    records, _ = read_data(recipe)
    task = task or Classify(recipe.task)
    task.fit(records)
    seed_everything(recipe.seed)
    bundle = load(recipe.model.source, task=task)
    train = featurize(task, records, bundle.tokenizer)
    trainer = Trainer(task, bundle.model, train, options=recipe.train, name_record=records.where)
    return trainer, bundle


def place(trainer: Trainer, updates: int) -> Cursor:
    at = Cursor()
    for _ in range(updates):
        at = trainer.order.take(at, 8)[1]
    return at


def assert_same_weights(one: Any, other: Any) -> None:
    for name, expected in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name


class TestPoison:
    def test_rolls_back_and_passes_over_it(self, poisoned: tuple[Recipe, set[int]]) -> None:
        """What comes out is bit for bit a run that never saw that data."""
        recipe, lines = poisoned
        result = train_recipe(recipe, quiet=True)
        assert len(result.rescues) == 1
        assert f"in update {POISONED + 1} of 45: back to update 20 (10 undone)" in result.rescues[0]
        named = {
            int(part.split("line ")[1].split(" ")[0])
            for part in result.rescues[0].split("poison.tsv, ")[1:]
        }
        assert len(named) == 3
        assert named <= lines
        reference, bundle = trainer_of(recipe)
        reference.skips = {place(reference, POISONED - 1): place(reference, POISONED + 1)}
        reference.fit()
        assert_same_weights(bundle.model, load(Path(recipe.output) / "last").model)

    def test_skip_leaves_out_that_batch_alone(self, poisoned: tuple[Recipe, set[int]]) -> None:
        recipe = poisoned[0].changed({"train.guard.action": "skip"})
        result = train_recipe(recipe, quiet=True)
        assert len(result.rescues) == 1
        reference, bundle = trainer_of(recipe)
        reference.skips = {place(reference, POISONED): place(reference, POISONED + 1)}
        reference.fit()
        assert_same_weights(bundle.model, load(Path(recipe.output) / "last").model)

    def test_stop_leaves_spikes_alone_unless_asked(self, poisoned: tuple[Recipe, set[int]]) -> None:
        recipe = poisoned[0].changed({"train.guard": "stop"})
        assert train_recipe(recipe, quiet=True).rescues == []
        asked = poisoned[0].changed({"train.guard.action": "stop", "train.guard.spikes": True})
        with pytest.raises(RunError, match=r"jumped .* in update 31 of 45; .*not applied"):
            train_recipe(asked, overwrite=True, quiet=True)

    @pytest.mark.parametrize("stop_after", [25, 31, 33, 41])
    def test_a_run_stopped_around_it_resumes_exactly(
        self,
        poisoned: tuple[Recipe, set[int]],
        stop_after: int,
        tmp_path: Path,
    ) -> None:
        from tests.training.outcomes import assert_alike, outcome, stopped_after

        recipe, _ = poisoned
        train_recipe(recipe, quiet=True)
        other = recipe.changed({"output": str(tmp_path / "stopped")})
        with stopped_after(stop_after):
            train_recipe(other, quiet=True)
        resume(other.output, quiet=True)
        one, two = outcome(recipe.output), outcome(other.output)
        for found in (one, two):  # it went back to the checkpoint that was made when it stopped
            assert len(found["result"].pop("rescues")) == 1
            found["values"]["course"].pop("rescues")
        assert_alike(two, one)


class _BadLoss(Classify):
    """Its loss, or only its gradient, is not finite for texts with `x1` in them."""

    gradient_only = False
    trigger = -1

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Loss:
        found = super().loss(outputs, batch)
        if bool((batch.tokens == self.trigger).any()):
            bad = _NanBackward.apply(found.sum) if self.gradient_only else found.sum * float("inf")
            return Loss(bad, found.count)
        return found


class _NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * float("nan")


class TestNotFinite:
    """In the toy data some films are `x1`, whose last letter is a token of its own: `##1`."""

    def of(self, toy_recipe: Make, *, gradient_only: bool = False, **changes: Any) -> Any:
        recipe = toy_recipe(data__validation=None, train__epochs=2, **changes)
        task = _BadLoss(recipe.task)
        task.gradient_only = gradient_only
        trainer, bundle = trainer_of(recipe, task)
        task.trigger = bundle.tokenizer.encode(["x1"], max_length=8)[0].ids[2]
        texts = Path(recipe.data.train).read_text(encoding="utf-8").splitlines()[1:]
        guilty = {i + 2 for i, line in enumerate(texts) if "x1" in line}
        return trainer, guilty

    def test_names_the_records(self, toy_recipe: Make) -> None:
        trainer, guilty = self.of(toy_recipe)
        before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        with pytest.raises(RunError, match="the loss is inf in update 1 of 16") as caught:
            trainer.fit()
        message = str(caught.value)
        assert "these records give it by themselves" in message
        named = [
            int(part.split(",")[0].split(" ")[0].split(";")[0])
            for part in message.split("line ")[1:]
        ]
        assert named
        assert {int(n) for n in named} <= guilty
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_names_the_first_gradient(self, toy_recipe: Make) -> None:
        trainer, _ = self.of(toy_recipe, gradient_only=True)
        with pytest.raises(RunError, match="the gradient is nan in update 1") as caught:
            trainer.fit()
        assert "the first gradient that is not finite is that of classifier.bias" in str(
            caught.value
        )

    def test_names_the_first_module(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(data__validation=None)
        trainer, bundle = trainer_of(recipe)
        with torch.no_grad():
            bundle.model.get_parameter("backbone.layers.1.attention.qkv.weight").fill_(3e38)
        with pytest.raises(RunError, match="the loss is nan") as caught:
            trainer.fit()
        assert "the first module to give it is backbone.layers.1.attention" in str(caught.value)

    def test_names_weights_that_are_so_themselves(self, toy_recipe: Make) -> None:
        trainer, bundle = trainer_of(toy_recipe(data__validation=None))
        with torch.no_grad():
            bundle.model.get_parameter("classifier.weight")[0, 0] = float("nan")
        with pytest.raises(RunError, match=r"the weights of classifier\.weight are not finite"):
            trainer.fit()

    @pytest.mark.parametrize("action", ["skip", "rollback"])
    def test_gives_up_with_a_report(self, toy_recipe: Make, action: str) -> None:
        guard = {"action": action, "give_up": 2}
        trainer, _ = self.of(toy_recipe, train__guard=guard, train__batch_size=4)
        trainer.store = _InMemory(trainer)
        with pytest.raises(RunError, match="after 2 recoveries: given up") as caught:
            trainer.fit()
        assert str(caught.value).count("- the loss is inf in update") == 2

    def test_the_guard_says_what_it_does(self, toy_recipe: Make, capsys: Any) -> None:
        guard = {"action": "skip", "give_up": 1000}
        trainer, _ = self.of(toy_recipe, train__guard=guard, train__batch_size=1)
        trainer.reporter = Reporter()
        trainer.fit()
        assert "guard: the loss is inf in update" in capsys.readouterr().err
        assert statistics.mean(trainer.guard.losses) < 10


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_the_end_of_an_epoch_that_is_passed_over_is_evaluated_and_saved(
    toy_recipe: Make, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Epochs of 6 batches, of which the first one's last is bad; 12 updates in all."""
    real = Trainer.gradients

    def bad(trainer: Trainer, batch: Any) -> Any:
        total, count, parts = real(trainer, batch)
        return float("nan") if batch.start == Cursor(0, 40) else total, count, parts

    monkeypatch.setattr(Trainer, "gradients", bad)
    guard = {"action": action, "margin": 0}
    recipe = toy_recipe(train__guard=guard, train__save_every=1, train__keep=20)
    result = train_recipe(recipe, quiet=True)
    assert len(result.rescues) == 1
    log = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in log if "validation/" in line]
    expected = [(5, 1.0), (11, 2.0), (12, 2.1667)]
    assert [(entry["step"], entry["epoch"]) for entry in entries] == expected
    known = checkpoints(Path(recipe.output))
    values = [json.loads((path / VALUES).read_text(encoding="utf-8")) for _, path in known]
    ended = [value for value in values if value["course"]["steps"] == 5][-1]
    assert ended["cursor"] == [1, 0]
    assert [step for step, _, _ in ended["course"]["evaluations"]] == [5]


class _InMemory:
    """A store of copies."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.saved = trainer, []

    def save(self, step: int, state: Any, *, best: bool) -> None:
        import copy

        from pretune.training.state import SavedCheckpoint

        weights = {k: v.detach().clone() for k, v in self.trainer.model.state_dict().items()}
        self.saved.append(SavedCheckpoint("memory", weights, copy.deepcopy(state)))

    def newest(self, at_most: int | None = None) -> Any:
        return self.saved[-1] if self.saved else None
