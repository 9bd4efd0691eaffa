"""Rollouts in the one loop: their order, resuming inside of them, stopping early, the guard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.batch_order import Cursor
from pretune.errors import RunError
from pretune.tasks.base import RolloutPlan
from pretune.training import on_policy
from pretune.training.loop import Trainer
from pretune.training.on_policy import RolloutOrder
from pretune.training.state import SavedCheckpoint, TrainingState
from pretune.training.stop import Stopped
from tests.tasks.alignment.policies import policy, prompts, trainer
from tests.tasks.alignment.preferences import saved
from tests.training.outcomes import StopAt

STEADY = {"rollout": 4, "group": 2, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("on_policy") / "sft")


@given(
    count=st.integers(1, 12),
    rollout=st.integers(1, 5),
    group=st.integers(1, 3),
    passes=st.integers(1, 3),
    size=st.integers(1, 7),
    epoch=st.integers(0, 2),
)
def test_every_reply_once_in_each_pass(
    count: int, rollout: int, group: int, passes: int, size: int, epoch: int
) -> None:
    order = RolloutOrder(count, RolloutPlan(rollout, group, passes), seed=3)
    at, taken, asked = Cursor(epoch), dict[int, list[int]](), dict[int, list[int]]()
    updates = 0
    while at.epoch == epoch:
        own = order.rollout(at)
        which, after = order.take(at, size)
        assert 0 < len(which) <= size
        taken.setdefault(own.number, []).extend(which.tolist())
        asked[own.number] = order.prompts(at).tolist()
        assert order.following(at) >= after
        at, updates = after, updates + 1
    assert at == Cursor(epoch + 1)
    # Each prompt is in one rollout, and each of its replies is taken once a pass.
    assert sorted(number for numbers in asked.values() for number in numbers) == list(range(count))
    for number, replies in taken.items():
        n = len(asked[number]) * group
        for turn in range(passes):
            assert sorted(replies[turn * n : (turn + 1) * n]) == list(range(n))
    assert order.updates(2, lambda step: size) == 2 * updates
    assert len(order) == count * group * passes


def test_rollouts_have_seeds_of_their_own() -> None:
    order = RolloutOrder(9, RolloutPlan(3, 2, 2), seed=0)
    places = [Cursor(epoch, offset) for epoch in (0, 1) for offset in (0, 12, 24)]
    seeds = {order.seed_of(place, use) for place in places for use in (0, 1)}
    assert len(seeds) == 12
    assert order.seed_of(Cursor(0, 13)) == order.seed_of(Cursor(0, 23))
    other = RolloutOrder(9, RolloutPlan(3, 2, 2), seed=1)
    assert other.seed_of(Cursor()) not in seeds


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def halfway(trainer: Trainer, updates: int) -> SavedCheckpoint:
    """Train some updates, and what is saved then, as it comes back from disk."""
    trainer._should_stop = StopAt(updates)
    with pytest.raises(Stopped):
        trainer.fit()
    state = trainer.state()
    copies = {name: value.clone() for name, value in state.tensors.items()}
    return SavedCheckpoint("here", weights(trainer), TrainingState(copies, dict(state.values)))


@pytest.mark.parametrize(
    ("name", "updates"), [("ppo", 1), ("ppo", 2), ("ppo", 5), ("grpo", 3), ("rloo", 1)]
)
def test_resuming_is_exact(name: str, updates: int, sft: Path) -> None:
    """6 prompts in rollouts of 4 and 2, 2 replies each, 2 passes but for rloo, 4 in a batch."""
    options = {**STEADY, "passes": 1 if name == "rloo" else 2}
    options |= {"target_kl": 0.01, "kl_horizon": 50} if name == "ppo" else {}

    def begun() -> Trainer:
        task, bundle = policy(name, sft, **options)
        return trainer(task, bundle, prompts(task, bundle), epochs=2)

    whole = begun()
    whole.fit()
    assert whole.history.steps == (6 if name == "rloo" else 12)
    kept = halfway(begun(), updates)
    again = begun()
    again.restore(kept)
    assert again.history.steps == updates
    again.fit()
    expected = weights(whole)
    assert all(torch.equal(expected[key], value) for key, value in weights(again).items())
    if name == "ppo":
        assert again.task.beta == whole.task.beta != 0.05  # type: ignore[attr-defined]


def test_a_rollout_is_left_when_the_model_is_far_from_it(sft: Path) -> None:
    task, bundle = policy("ppo", sft, **STEADY, passes=3, max_kl=1e-9)
    ours = trainer(task, bundle, prompts(task, bundle), batch_size=8, max_steps=4)
    starts: list[Cursor] = []
    original = ours._update

    def watched(batch: Any) -> Any:
        starts.append(batch.start)
        return original(batch)

    ours._update = watched  # type: ignore[method-assign]
    ours.fit()
    # The first update of a rollout is made by the model that wrote it; the second moves away.
    assert starts == [Cursor(0, 0), Cursor(0, 8), Cursor(0, 24), Cursor(0, 28)]
    assert ours.cursor == Cursor(1, 0)


def test_dropout_is_off(sft: Path) -> None:
    task, bundle = policy("grpo", sft, **STEADY, beta=0.0)
    for module in bundle.model.modules():
        if isinstance(getattr(module, "p", None), float):
            module.p = 0.5  # type: ignore[assignment]
    ours = trainer(task, bundle, prompts(task, bundle), max_steps=1)
    seen: list[float] = []
    original = task.loss

    def watched(outputs: Any, batch: Any) -> Any:
        loss = original(outputs, batch)
        seen.append(float(loss.parts["ratio"]) / loss.count)
        return loss

    task.loss = watched  # type: ignore[method-assign]
    ours.fit()
    assert seen == pytest.approx([1.0], abs=1e-5)


def test_the_guard_passes_over_a_bad_batch(sft: Path) -> None:
    task, bundle = policy("grpo", sft, **STEADY, passes=2)
    ours = trainer(task, bundle, prompts(task, bundle), guard={"action": "skip"})
    original, calls = task.experience, []

    def spoilt(attempts: Any) -> Any:
        made = original(attempts)
        if not calls:
            made.targets["advantage"][made.starts[1] - 1] = np.nan
        calls.append(len(attempts))
        return made

    task.experience = spoilt  # type: ignore[method-assign]
    with pytest.raises(RunError, match="record"):
        trainer(task, bundle, prompts(task, bundle), guard={"action": "stop"}).fit()
    calls.clear()
    ours.fit()
    assert ours.history.steps == 6
    assert ours.history.rescues
    assert "these records give it by themselves: record" in ours.history.rescues[0]
    assert len(calls) > 2, "the rollouts after it are written as ever"


def test_batches_by_tokens_are_refused(sft: Path) -> None:
    task, bundle = policy("grpo", sft, **STEADY)
    with pytest.raises(RunError, match=r"train\.batch_size"):
        trainer(task, bundle, prompts(task, bundle), batch_size=None, batch_tokens=64)


def test_batches_larger_than_a_rollout_are_refused(sft: Path) -> None:
    task, bundle = policy("grpo", sft, **STEADY)
    with pytest.raises(RunError, match="a rollout has only 8 replies"):
        trainer(task, bundle, prompts(task, bundle), batch_size=9)


def test_a_sharded_model_is_refused(sft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, bundle = policy("grpo", sft, **STEADY)
    monkeypatch.setattr(on_policy, "is_sharded", lambda model: True)
    with pytest.raises(RunError, match=r"train\.parallel=ddp"):
        trainer(task, bundle, prompts(task, bundle))


def test_going_back_to_the_start_brings_beta_back(sft: Path) -> None:
    task, bundle = policy("ppo", sft, **STEADY, target_kl=0.01, kl_horizon=50)
    ours = trainer(task, bundle, prompts(task, bundle))
    state = ours.state()
    start = SavedCheckpoint("here", weights(ours), state)
    ours.fit()
    assert task.beta != 0.05
    ours.restore(start)
    assert task.beta == 0.05
