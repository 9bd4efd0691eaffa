"""Reinforcement learning that is killed, has no room, or whose reward fails: nothing is lost."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretune.errors import CheckpointError, RunError
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.training import checkpoint, reference_scores
from pretune.training.reference_scores import REFERENCE_FILE
from pretune.training.run import resume, train_recipe
from pretune.training.stop import Interrupted
from tests.faults.runs import Running, assert_sound, neighbour, steps_of, wait_until
from tests.tasks.alignment.preferences import ROWS, recipe, saved, write

_outcomes = neighbour("outcomes")
outcome, assert_alike = _outcomes.outcome, _outcomes.assert_alike
stopped_after = _outcomes.stopped_after
#: Two rollouts an epoch, of 4 and 2 prompts, with four updates and two.
USUAL = {
    "task.max_length": 64,
    "task.max_new_tokens": 4,
    "task.rollout": 4,
    "task.group": 2,
    "task.passes": 2,
    "task.samples": 2,
    "task.reward": {"length": 12},
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.log_every": 1,
    "train.eval_every": 100,
}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Recipe]:
    saved(tmp_path / "sft")

    def make(folder: str, name: str = "grpo", **changes: Any) -> Recipe:
        return recipe(name, tmp_path, **{**USUAL, "output": str(tmp_path / folder), **changes})

    return make


@pytest.mark.parametrize(
    ("at", "call"),
    [
        # The first evaluation writes replies too.
        pytest.param("pretune.decoding.writer:LiveBatch", 4, marks=pytest.mark.slow),
        pytest.param("pretune.inference.rewards:_finite", 5, marks=pytest.mark.slow),
        pytest.param("pretune.training.loop:drawn", 6, marks=pytest.mark.slow),
        pytest.param("pretune.training.checkpoint:write_manifest", 3, marks=pytest.mark.slow),
    ],
    ids=["writing", "scoring", "between-updates", "saving"],
)
def test_killed_inside_a_rollout(
    at: str, call: int, made: Callable[..., Recipe], start: Callable[..., Running], tmp_path: Path
) -> None:
    for name in ("whole", "killed"):
        changes = {"train.save_every": 1, "train.workers": 0}
        text = yaml12.dump(made(name, "ppo", **{"task.group": 1, **changes}).to_dict())
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    marker, killed = tmp_path / "now", tmp_path / "killed"
    stalled = {"at": at, "call": call, "seconds": 600.0, "marker": str(marker)}
    running = start("train", tmp_path / "killed.yaml", "-q", stalled=stalled)
    assert wait_until(marker.exists, running), running.said()
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert_sound(killed)
    assert steps_of(killed), "it was killed before anything was saved"
    others = [start("train", tmp_path / "whole.yaml", "-q"), start("train", "--resume", killed)]
    for other in others:
        assert other.wait() == 0, other.said()
    assert_alike(outcome(killed), outcome(tmp_path / "whole"))


def full(call: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose call of this number finds the disk full."""
    calls: list[int] = []

    def save(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)

    return save


def test_no_room_for_a_checkpoint_with_a_rollout(
    made: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_recipe(made("whole", **{"train.save_every": 1}), quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full(4, checkpoint.save_file))
        with pytest.raises(RunError, match="No space left on device") as error:
            train_recipe(made("part", **{"train.save_every": 1}), quiet=True)
    part = tmp_path / "part"
    assert_sound(part)
    assert f"step-{steps_of(part)[-1]:06d} is intact" in str(error.value)
    resume(part, quiet=True)
    assert_alike(outcome(part), outcome(tmp_path / "whole"))


def test_no_room_for_the_scores_of_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "sft")
    own = recipe("dpo", tmp_path, **{"task.samples": 1, "train.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(reference_scores, "save_file", full(1, reference_scores.save_file))
        message = rf"{REFERENCE_FILE}: cannot be written \(No space left on device\)\n.*--resume"
        with pytest.raises(RunError, match=message):
            train_recipe(own, quiet=True)
    assert not (tmp_path / "run" / REFERENCE_FILE).exists()
    assert resume(tmp_path / "run", quiet=True).steps == 3


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Write a module `odd_rewards`, whose function does something in its third call."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write_module(deed: str) -> None:
        code = f"""import signal
calls = []
def score(replies):
    calls.append(1)
    if len(calls) == 3:
        {deed}
    return [len(reply) / 10 for reply in replies]
"""
        (tmp_path / "odd_rewards.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "odd_rewards", raising=False)

    return write_module


@pytest.mark.parametrize(
    ("deed", "error", "message"),
    [
        ("raise ValueError('later')", RunError, "failed at .*ValueError: later"),
        pytest.param(
            *("return [float('nan')] * len(replies)", RunError, "gave nan for reply 1"),
            marks=pytest.mark.slow,
        ),
        pytest.param("return [1.0]", RunError, "gave 1 value for", marks=pytest.mark.slow),
        # As Ctrl-C that is pressed twice, since the function does not end.
        ("[signal.raise_signal(signal.SIGINT) for _ in range(2)]", Interrupted, "stopped after 4"),
    ],
)
def test_what_was_trained_before_a_reward_failed_is_kept(
    deed: str,
    error: type[Exception],
    message: str,
    rewards: Callable[[str], None],
    made: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    """In the second rollout, with no checkpoint of the first one's updates."""
    reward = {"task.reward": "odd_rewards:score", "train.epochs": 1}
    rewards("pass")
    train_recipe(made("whole", **reward), quiet=True)
    rewards(deed)
    with pytest.raises(error, match=message):
        train_recipe(made("part", **reward), quiet=True)
    assert steps_of(tmp_path / "part")[-1] == 4
    rewards("pass")
    resume(tmp_path / "part", quiet=True)
    assert_alike(outcome(tmp_path / "part"), outcome(tmp_path / "whole"))


def test_the_reward_model_is_gone_when_the_run_goes_on(
    made: Callable[..., Recipe], tmp_path: Path
) -> None:
    own = {"task.max_length": 64, "train.epochs": 1, "output": str(tmp_path / "reward")}
    saved(tmp_path / "other", seed=1)
    start = {"model.from": str(tmp_path / "other")}
    train_recipe(recipe("reward", tmp_path, **{**own, **start}), quiet=True)
    write(tmp_path / "v.jsonl", ROWS[:3])
    part = made("part", **{"task.reward": {"run": str(tmp_path / "reward")}, "train.epochs": 1})
    with stopped_after(2):
        train_recipe(part, quiet=True)
    (tmp_path / "reward").rename(tmp_path / "moved")
    before = steps_of(tmp_path / "part")
    with pytest.raises(CheckpointError, match=r"the reward's model .*reward cannot be loaded"):
        resume(part.output, quiet=True)
    assert steps_of(tmp_path / "part") == before
    (tmp_path / "moved").rename(tmp_path / "reward")
    assert resume(part.output, quiet=True).steps == 6
