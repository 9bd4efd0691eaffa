"""Several processes train as one: the same weights, the same figures, whatever their number."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pretune.checkpoints.manifest import find_damage
from pretune.errors import RunError
from pretune.recipe.recipe import Recipe
from pretune.training import distributed, run
from pretune.training.distributed import environment_world, joined, own_device
from pretune.training.loop import share_out
from pretune.training.run import train_recipe
from tests.tasks.alignment.preferences import recipe as preference_recipe
from tests.tasks.alignment.preferences import saved
from tests.tasks.translations import PAIRS, SIZES
from tests.training.groups import (
    STEADY,
    Together,
    assert_close,
    free_port,
    result_of,
    weights,
)
from tests.training.outcomes import assert_alike, outcome

Make = Callable[..., Recipe]
#: What lies on the host is exchanged there, and what lies on GPUs among them.
BOTH = "cpu:gloo,cuda:nccl"


@given(count=st.integers(1, 40), parts=st.integers(1, 6), size=st.integers(1, 5))
def test_shares_are_the_batch(count: int, parts: int, size: int) -> None:
    """Each example is in one part of one process; all processes have equally many parts."""
    whole = np.arange(count) * 3
    shares = [share_out(whole, parts, rank, size) for rank in range(size)]
    real = [int(i) for share in shares for part, ok in zip(*share, strict=True) if ok for i in part]
    assert sorted(real) == whole.tolist()
    assert len({len(parts) for parts, _ in shares}) == 1
    assert all(len(part) > 0 for parts, _ in shares for part in parts)


@pytest.fixture
def mask_recipe(toy_recipe: Make) -> Recipe:
    """Masks to fill; 7 in a batch, so that no two processes have equally many."""
    values = toy_recipe(**STEADY, train__batch_size=7, train__max_steps=6).to_dict()
    values["task"] = {"name": "mask_lm", "max_length": 16}
    return Recipe.of(values)


class TestSameUpdates:
    @pytest.mark.parametrize(
        ("size", "changes"),
        [
            (2, {"train__parallel": "ddp", "train__batch_size": 7}),
            pytest.param(
                *(2, {"train__parallel": "fsdp", "train__batch_size": 7}), marks=pytest.mark.slow
            ),
            pytest.param(
                *(3, {"train__parallel": "ddp", "train__accumulate": 2}), marks=pytest.mark.slow
            ),
            (2, {"train__parallel": "fsdp", "train__accumulate": 3, "train__ema": 0.9}),
            # 48 examples in batches of 5: the last one, of 3, leaves a process without any.
            pytest.param(
                *(4, {"train__parallel": "ddp", "train__batch_size": 5, "train__workers": 1}),
                marks=pytest.mark.slow,
            ),
            pytest.param(
                *(4, {"train__parallel": "fsdp", "train__batch_size": 5}), marks=pytest.mark.slow
            ),
            pytest.param(
                2,
                {"train__freeze": "embeddings", "train__layer_decay": 0.9, "train__ema": 0.9},
                marks=pytest.mark.slow,
            ),
            (2, {"train__parallel": "fsdp", "train__freeze": {"layers": 1}}),
        ],
        ids=str,
    )
    def test_as_one_process(
        self,
        size: int,
        changes: dict[str, Any],
        toy_recipe: Make,
        tmp_path: Path,
        together: Together,
    ) -> None:
        one = toy_recipe(output=str(tmp_path / "one"), **STEADY, **changes)
        result = train_recipe(one, quiet=True)
        several = one.changed({"output": str(tmp_path / "several")})
        together.train(size, several)
        assert_close(several.output, weights(one.output))
        found = result_of(several.output)
        assert found["details"] == result.details  # each example counted once
        assert found["metrics"] == pytest.approx(result.metrics, abs=1e-5)
        assert (found["steps"], found["tokens"]) == (result.steps, result.tokens)
        assert find_damage((Path(several.output) / "last").resolve()) is None

    @pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
    def test_with_uneven_counts_of_targets(
        self, parallel: str, mask_recipe: Recipe, tmp_path: Path, together: Together
    ) -> None:
        train_recipe(mask_recipe, quiet=True)
        several = mask_recipe.changed(
            {"output": str(tmp_path / "several"), "train.parallel": parallel}
        )
        together.train(2, several)
        assert_close(several.output, weights(mask_recipe.output))
        assert result_of(several.output)["metrics"] == pytest.approx(
            result_of(mask_recipe.output)["metrics"], rel=1e-4
        )

    @pytest.mark.slow
    def test_of_a_tagger_whose_sentences_are_in_several_windows(
        self, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        """The windows of a sentence are evaluated in any process; a field is trained too."""
        data = tmp_path / "names.conll"
        words = ["the\tO\n", "good\tB-A\n", "film\tI-A\n", "un\tB-C\n"]
        data.write_text(
            "\n".join("".join((words * 9)[i % 3 : 5 + i % 29]) for i in range(40)) + "\n",
            encoding="utf-8",
        )
        values = toy_recipe(**STEADY, train__batch_size=7, train__max_steps=6).to_dict()
        values["task"] = {"name": "tag", "max_length": 12, "overlap": 4, "crf": True}
        values["data"]["train"] = str(data)
        one = Recipe.of(values)
        result = train_recipe(one, quiet=True)
        several = one.changed({"output": str(tmp_path / "several")})
        together.train(2, several)
        assert_close(several.output, weights(one.output))
        found = result_of(several.output)
        assert found["details"] == result.details
        assert found["metrics"] == pytest.approx(result.metrics, abs=1e-5)

    @pytest.mark.slow
    def test_of_a_policy(self, tmp_path: Path, together: Together) -> None:
        """Replies are written by all processes; 5 prompts of a rollout, so one has more of them."""
        saved(tmp_path / "sft")
        one = preference_recipe(
            "ppo",
            tmp_path,
            **{
                "task.max_length": 64,
                "task.max_new_tokens": 6,
                "task.rollout": 5,
                "task.passes": 2,
                "task.reward": {"length": 12},
                "task.target_kl": 0.1,
                "train.batch_size": 3,
                "train.max_steps": 10,
            },
        )
        result = train_recipe(one, quiet=True)
        several = one.changed({"output": str(tmp_path / "several")})
        together.train(2, several)
        assert_close(several.output, weights(one.output))
        assert result_of(several.output)["metrics"] == pytest.approx(result.metrics, abs=1e-4)
        assert result_of(several.output)["details"] == result.details
        with pytest.raises(AssertionError):  # not as it started
            assert_close(several.output, load_file(tmp_path / "sft" / "model.safetensors"))

    @pytest.mark.slow
    def test_of_a_translator(self, tmp_path: Path, together: Together) -> None:
        """BLEU is of the translations of all processes."""
        files = [tmp_path / "a.de", tmp_path / "a.en"]
        for side, path in enumerate(files):
            path.write_text("".join(pair[side] + "\n" for pair in PAIRS * 2), encoding="utf-8")
        data = ",".join(map(str, files))
        one = Recipe.load(
            "translate",
            {
                "data.train": data,
                "data.validation": data,
                "model.config": SIZES,
                "model.dropout": 0.0,
                "model.train_tokenizer.vocab_size": 300,
                "task.max_length": 40,
                "train.batch_tokens": None,
                "train.batch_size": 5,
                "train.max_steps": 4,
                "train.warmup": 0,
                "train.eps": 1e-2,
                "train.eval_batch_tokens": 200,
                "output": str(tmp_path / "one"),
            },
        )
        result = train_recipe(one, quiet=True)
        several = one.changed({"output": str(tmp_path / "several")})
        together.train(2, several)
        assert_close(several.output, weights(one.output))
        found = result_of(several.output)
        assert found["metrics"] == pytest.approx(result.metrics, rel=1e-3)
        assert found["details"]["translations"] == result.details["translations"]

    def test_the_mean_of_means_would_be_another(
        self, mask_recipe: Recipe, tmp_path: Path, together: Together
    ) -> None:
        """That the test above can fail: what DDP does by itself."""
        train_recipe(mask_recipe, quiet=True)
        several = mask_recipe.changed({"output": str(tmp_path / "several")})
        together.train(2, several, change="local_count")
        with pytest.raises(AssertionError):
            assert_close(several.output, weights(mask_recipe.output))


class TestResume:
    @pytest.mark.parametrize("parallel", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
    def test_of_as_many_is_exact(
        self, parallel: str, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        """Bit for bit, with dropout, which differs from process to process."""
        changes = {"train__parallel": parallel, "model__dropout": 0.2}
        one = toy_recipe(output=str(tmp_path / "whole"), **changes)
        together.train(2, one)
        two = one.changed({"output": str(tmp_path / "stopped")})
        together.train(2, two, stop_at=4)
        together.resume(2, two.output)
        if parallel == "fsdp":
            shards = [Path(r.output) / "last" / "shards" for r in (one, two)]
            names = sorted(path.name for path in shards[0].iterdir())
            assert names
            for name in names:  # torch orders their headers differently from time to time
                expected, found = (load_file(folder / name) for folder in shards)
                assert found.keys() == expected.keys()
                assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert_alike(outcome(two.output), outcome(one.output))

    @pytest.mark.slow
    @pytest.mark.parametrize("then", [1, 3])
    @pytest.mark.parametrize("average", [None, 0.9])
    def test_of_shares_by_another_number(
        self, then: int, average: float | None, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        changes = {"train__parallel": "fsdp", "train__ema": average, **STEADY}
        one = toy_recipe(output=str(tmp_path / "whole"), **changes)
        train_recipe(one, quiet=True)
        two = one.changed({"output": str(tmp_path / "stopped")})
        together.train(2, two, stop_at=4)
        assert any((Path(two.output) / "last" / "shards").iterdir())
        together.resume(then, two.output)
        assert_close(two.output, weights(one.output))

    @pytest.mark.slow
    def test_of_one_process_by_several(
        self, toy_recipe: Make, tmp_path: Path, together: Together
    ) -> None:
        one = toy_recipe(output=str(tmp_path / "whole"), train__parallel="fsdp", **STEADY)
        train_recipe(one, quiet=True)
        two = one.changed({"output": str(tmp_path / "stopped")})
        together.train(1, two, stop_at=4)
        together.resume(2, two.output)
        assert_close(two.output, weights(one.output))


@pytest.mark.slow
def test_the_guard_acts_in_all_alike(toy_recipe: Make, tmp_path: Path, together: Together) -> None:
    """A NaN that only one process meets is a rescue in all."""
    recipe = toy_recipe(train__guard="rollback", train__save_every=2, **STEADY)
    several = recipe.changed({"output": str(tmp_path / "several")})
    together.train(1, recipe, change="poison")
    together.train(2, several, change="poison")
    alone, found = result_of(recipe.output), result_of(several.output)
    assert alone["rescues"]
    expected = [rescue.split(":")[0] for rescue in alone["rescues"]]
    assert [rescue.split(":")[0] for rescue in found["rescues"]] == expected
    assert_close(several.output, weights(recipe.output))


class TestDevices:
    """With CUDA and the process group replaced by what writes down the calls."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        seen: list[tuple[str, str]] = []

        def empty(size: int, device: torch.device) -> torch.Tensor:
            seen.append(("empty", str(device)))
            return torch.zeros(size)

        def init(backend: str, device_id: torch.device | None = None, **place: Any) -> None:
            seen.append((f"init {backend}", str(device_id)))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", lambda d: seen.append(("set", str(d))))
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(distributed, "Lifeline", lambda *about: nullcontext())
        monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
        monkeypatch.setattr(dist, "init_process_group", init)
        monkeypatch.setattr(
            dist,
            "is_initialized",
            lambda: (
                ("destroy", "") not in seen and any(name.startswith("init") for name, _ in seen)
            ),
        )
        monkeypatch.setattr(dist, "destroy_process_group", lambda: seen.append(("destroy", "")))
        return seen

    def start(self, monkeypatch: pytest.MonkeyPatch, **places: int) -> None:
        for name, value in places.items():
            monkeypatch.setenv(name, str(value))

    @pytest.mark.parametrize("work", ["train", "resume"])
    @pytest.mark.parametrize("name", ["cuda", "auto"])
    @pytest.mark.parametrize("rank", [0, 1])
    def test_each_process_opens_its_own_gpu_and_no_other(
        self,
        rank: int,
        name: str,
        work: str,
        calls: list[tuple[str, str]],
        toy_recipe: Make,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        recipe, devices = toy_recipe(train__device=name), []

        class Run:
            def __init__(self, recipe: Any, folder: Any, world: Any, device: Any, **more: Any):
                devices.append(str(device))

            def go(self) -> None:
                pass

        monkeypatch.setattr(run, "_Run", Run)
        # The second machine: its processes count from 0 again.
        self.start(monkeypatch, RANK=2 + rank, WORLD_SIZE=4, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=2)
        if work == "train":
            train_recipe(recipe)
        else:
            Path(recipe.output).mkdir()
            (Path(recipe.output) / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
            run.resume(recipe.output)
        own = f"cuda:{rank}"
        assert calls == [("set", own), ("empty", own), (f"init {BOTH}", own), ("destroy", "")]
        assert devices == [own]

    @pytest.mark.parametrize(
        ("name", "places", "expected"),
        [
            # On a CPU nothing is set, and gloo needs no device.
            ("cpu", {"WORLD_SIZE": 2, "RANK": 1}, [("empty", "cpu"), ("init gloo", "None")]),
            # Alone, a process works as without torchrun.
            ("cuda", {"WORLD_SIZE": 1, "RANK": 0}, [("empty", "cuda")]),
            ("cuda:1", {}, [("empty", "cuda:1")]),
            # One process on each machine may take any of its GPUs.
            (
                "cuda:1",
                {"WORLD_SIZE": 2, "RANK": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1},
                [("set", "cuda:1"), ("empty", "cuda:1"), (f"init {BOTH}", "cuda:1")],
            ),
        ],
        ids=str,
    )
    def test_others(
        self,
        name: str,
        places: dict[str, int],
        expected: list[tuple[str, str]],
        calls: list[tuple[str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.start(monkeypatch, **places)
        world = environment_world()
        with joined(world, own_device(name, world)):
            assert calls == expected

    def test_a_group_that_a_launcher_has_made_stays(
        self, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        self.start(monkeypatch, RANK=1, WORLD_SIZE=2)
        with joined(environment_world(), torch.device("cpu")):
            pass
        assert calls == []

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("cuda", "process 2 of this machine has no GPU of its own: there are 2\n.*node=2"),
            ("cuda:0", "train.device=cuda:0: 3 processes on one machine need a GPU each"),
        ],
    )
    def test_more_processes_than_gpus(
        self, name: str, told: str, calls: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.start(monkeypatch, RANK=2, WORLD_SIZE=3, LOCAL_RANK=2, LOCAL_WORLD_SIZE=3)
        with pytest.raises(RunError, match=told):
            own_device(name, environment_world())
        assert calls == []


class TestTorchrun:
    @pytest.fixture
    def path(self, toy_recipe: Make, tmp_path: Path) -> Path:
        path = tmp_path / "recipe.yaml"
        recipe = toy_recipe(train__max_steps=10**6, train__eval_every=20)
        path.write_text(recipe.to_yaml(), encoding="utf-8")
        return path

    def start(self, path: Path, *changes: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        port = ["--master-port", str(free_port())]
        command = [*launcher, *port, "-m", "pretune", "train", str(path), *changes]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)

    @pytest.mark.slow
    def test_says_things_once(self, path: Path) -> None:
        out, err = self.start(path, "train.max_steps=3").communicate(timeout=300)
        assert out.count("ask it:") == 1, err
        assert err.count("on 2 processes for 3 updates") == 1

    def test_sigterm_saves_once_and_resumes(self, path: Path, tmp_path: Path) -> None:
        process = self.start(path)
        last = tmp_path / "run" / "last"
        deadline = time.monotonic() + 120
        while not last.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
        assert process.returncode != 0
        assert f"the last checkpoint is {last}" in err
        assert find_damage(last.resolve()) is None
