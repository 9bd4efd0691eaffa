"""Processes that are killed, that fail, and that write together: real ones, by gloo."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pretune.checkpoints.manifest import find_damage
from pretune.recipe.recipe import Recipe
from pretune.training.checkpoint import checkpoints, newest_whole
from tests.training.groups import STEADY, Together, assert_close, free_port, weights
from tests.training.outcomes import assert_alike, outcome

Make = Callable[..., Recipe]
SAVING = {"train__save_every": 1, "train__keep": 2, "model__dropout": 0.2}

#: Seconds for what torchrun starts: six interpreters that import torch, on a busy machine.
PATIENCE = 400.0
#: How often one of four processes is killed; 40 times by PRETUNE_RANK_KILLS=40.
KILLS = int(os.environ.get("PRETUNE_RANK_KILLS", "5"))

pytestmark = pytest.mark.slow


def whole_steps(run: str | Path) -> list[int]:
    return [step for step, path in checkpoints(Path(run)) if find_damage(path) is None]


class TestFailures:
    @pytest.mark.parametrize(("dead", "speaker"), [("1", 0), ("0", 1)])
    def test_one_that_is_killed_ends_the_others_with_a_sentence(
        self, dead: str, speaker: int, toy_recipe: Make, together: Together
    ) -> None:
        recipe = toy_recipe(train__max_steps=100_000, train__epochs=100_000)
        codes = together.ended(2, work="train", what=recipe.to_dict(), killed={dead: 2.0})
        assert codes[int(dead)] == -signal.SIGKILL
        assert codes[speaker] == 1
        said = together.said()
        assert said.count("error: ") == 1
        assert f"error: process {dead} of 2 (" in said
        assert "Traceback" not in said

    def test_one_that_is_killed_while_the_others_wait_for_it(
        self, toy_recipe: Make, together: Together
    ) -> None:
        """Not half an hour: they watch each other before they join what computes."""
        recipe = toy_recipe()
        codes = together.ended(3, work="train", what=recipe.to_dict(), change="die_joining")
        assert codes == [1, 1, -signal.SIGKILL]
        said = together.said()
        assert said.count("error: ") == 1
        assert "error: process 2 of 3 (" in said
        assert "Traceback" not in said

    def test_the_first_is_killed_before_they_have_met(
        self, toy_recipe: Make, together: Together
    ) -> None:
        recipe = toy_recipe()
        codes = together.ended(2, work="train", what=recipe.to_dict(), change="die_meeting")
        assert codes == [-signal.SIGKILL, 2]
        said = together.said()
        assert said.count("error: ") == 1
        assert "error: the processes of this run do not find each other (" in said
        assert "Traceback" not in said

    def test_what_one_refuses_the_first_tells(self, toy_recipe: Make, together: Together) -> None:
        recipe = toy_recipe()
        codes = together.ended(2, work="train", what=recipe.to_dict(), change="refuse")
        assert codes == [2, 2]
        said = together.said()
        assert said.startswith("error: process 1 of 2 (")
        assert said.count("films.tsv: line 3 is not there") == 1
        assert "Traceback" not in said
        assert not (Path(recipe.output) / "recipe.yaml").exists()

    def test_a_mistake_of_ours_ends_all(self, toy_recipe: Make, together: Together) -> None:
        recipe = toy_recipe(**SAVING)
        codes = together.ended(2, work="train", what=recipe.to_dict(), change="fall_over")
        assert codes == [1, 1]
        said = together.said()
        assert said.count("KeyError: 'nobody expected this'") == 1
        assert "process 1 of 2 (" in said
        # And what was saved is there to go on from.
        assert whole_steps(recipe.output)


class TestShardsOnDisk:
    def test_are_written_while_training_goes_on(
        self, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        """The write waits for the next update; a training that waits for the write never ends."""
        changes = {"train__parallel": "fsdp", "train__ema": 0.9, **SAVING, "train__save_every": 2}
        one = toy_recipe(output=str(tmp_path / "at-once"), **changes, train__background_save=False)
        together.train(2, one)
        two = one.changed({"output": str(tmp_path / "beside"), "train.background_save": True})
        together.train(2, two, change="write_beside")
        assert_alike(outcome(two.output), outcome(one.output))
        assert (tmp_path / "beside" / "beside.txt").read_text().count("beside") >= 3

    def test_a_death_while_they_are_written_leaves_the_former_ones(
        self, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        changes = {"train__parallel": "fsdp", "train__background_save": True, **SAVING}
        one = toy_recipe(output=str(tmp_path / "whole"), **changes)
        together.train(2, one)
        two = one.changed({"output": str(tmp_path / "killed")})
        codes = together.ended(2, work="either", what=two.to_dict(), change="die_writing")
        assert codes == [-signal.SIGKILL, 1]
        assert whole_steps(two.output) == [1, 2]
        assert list((Path(two.output) / "checkpoints").glob(".step-000003.*.tmp"))
        together.either(2, two)
        assert_alike(outcome(two.output), outcome(one.output))
        assert not list(Path(two.output).rglob("*.tmp"))

    def test_a_full_disk_of_one_is_told_once(self, toy_recipe: Make, together: Together) -> None:
        recipe = toy_recipe(train__parallel="fsdp", **SAVING)
        codes = together.ended(2, work="train", what=recipe.to_dict(), change="full_disk")
        assert codes == [2, 2]
        said = together.said()
        assert said.count("error: ") == 1
        assert "step-000003: the checkpoint cannot be written (No space left on device)" in said
        assert "Traceback" not in said
        assert whole_steps(recipe.output) == [1, 2]
        assert not list(Path(recipe.output).rglob("*.tmp"))


@pytest.mark.parametrize(
    ("size", "kills", "changes"),
    [
        (4, KILLS, {"train__parallel": "ddp"}),
        (3, 4, {"train__parallel": "fsdp", "train__background_save": True}),
    ],
    ids=str,
)
def test_killed_again_and_again_it_ends_as_if_nothing_had_happened(
    size: int,
    kills: int,
    changes: dict[str, Any],
    toy_recipe: Make,
    tmp_path: Path,
    together: Together,
) -> None:
    """The same command each time, as torchrun's --max-restarts or a queue gives it."""
    steps = max(60, 12 * kills)
    steady = {**SAVING, **changes, "train__max_steps": steps, "train__epochs": steps}
    one = toy_recipe(output=str(tmp_path / "whole"), **steady)
    together.train(size, one)
    two = one.changed({"output": str(tmp_path / "killed")})
    chance = random.Random(size)
    done = 0
    while done < kills:
        before = max(whole_steps(two.output), default=0)
        dead = chance.randrange(size)
        seconds = chance.uniform(0.6, 1.6)
        killed = {str(dead): seconds}
        codes = together.ended(size, work="either", what=two.to_dict(), killed=killed)
        if codes == [0] * size:
            break
        assert codes[dead] == -signal.SIGKILL
        assert {code for rank, code in enumerate(codes) if rank != dead} == {1}, together.said()
        assert "Traceback" not in together.said()
        assert max(whole_steps(two.output), default=0) >= before
        done += 1
    assert done >= kills - 1
    together.either(size, two)
    assert_alike(outcome(two.output), outcome(one.output))
    # And once more: it is done.
    together.either(size, two)


def test_the_number_of_processes_may_change_each_time(
    toy_recipe: Make, tmp_path: Path, together: Together
) -> None:
    one = toy_recipe(output=str(tmp_path / "whole"), train__parallel="fsdp", **STEADY)
    together.train(1, one)
    two = one.changed({"output": str(tmp_path / "changing")})
    for size, stop_at in ((3, 3), (2, 3), (1, 2)):
        codes = together.ended(size, work="either", what=two.to_dict(), stop_at=stop_at)
        assert codes == [0] * size, together.said()
    together.either(2, two)
    assert_close(two.output, weights(one.output))


class TestTorchrun:
    def test_begins_again_by_itself(self, toy_recipe: Make, tmp_path: Path) -> None:
        recipe = toy_recipe(train__max_steps=30, train__epochs=20, **SAVING)
        path, run = tmp_path / "recipe.yaml", Path(recipe.output)
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        how = ["--max-restarts", "2", "--master-port", str(free_port())]
        command = [*launcher, *how, "-m", "pretune", "train", str(path), "--resume", "auto"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + PATIENCE
        while len(checkpoints(run)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.kill(int((run / ".lock").read_text().split()[1]), signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert "process 0 of 2 (" in err
        assert "resumed from " in err
        assert out.count("ask it:") == 1
        assert json.loads((run / "result.json").read_text(encoding="utf-8"))["steps"] == 30
        assert newest_whole(run) is not None
        again = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert again.returncode == 0
        assert "resumed from" not in again.stderr
