"""Training, answers and text on a GPU, beside the same on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pretune.bundle.bundle import load
from pretune.inference.predict import Predictor
from pretune.models import flash
from pretune.recipe.recipe import Recipe
from pretune.training.run import resume, train_recipe
from tests.training.groups import free_port, weights
from tests.training.outcomes import assert_alike, outcome, stopped_after

Make = Callable[..., Recipe]

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_gives_the_numbers_of_the_equation(
    causal: bool, dropped: bool, size: int
) -> None:
    device = torch.device("cuda", 0)
    kind = {"causal": causal, "windowed": False, "dropped": dropped}
    assert flash.works(device, torch.bfloat16, size, **kind)


def test_float32_trains_as_on_the_cpu(toy_recipe: Make, tmp_path: Path) -> None:
    steady = {"train__precision": "float32", "train__eps": 0.1, "train__learning_rate": 0.1}
    recipes = [
        toy_recipe(output=str(tmp_path / device), train__device=device, **steady)
        for device in ("cpu", "cuda")
    ]
    expected, got = (train_recipe(recipe, quiet=True) for recipe in recipes)
    assert got.metrics == pytest.approx(expected.metrics, abs=1e-3)
    theirs = weights(recipes[0].output)
    for name, value in weights(recipes[1].output).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_goes_on_bit_for_bit(precision: str, toy_recipe: Make, tmp_path: Path) -> None:
    changes = {
        "train__device": "cuda",
        "train__precision": precision,
        "train__deterministic": precision == "float32",
        "model__dropout": 0.2,
    }
    whole = toy_recipe(output=str(tmp_path / "whole"), **changes)
    train_recipe(whole, quiet=True)
    parts = whole.changed({"output": str(tmp_path / "parts")})
    with stopped_after(4):
        train_recipe(parts, quiet=True)
    resume(parts.output, quiet=True)
    assert_alike(outcome(parts.output), outcome(whole.output))


def test_answers_as_on_the_cpu(toy_recipe: Make) -> None:
    recipe = toy_recipe(train__device="cuda")
    train_recipe(recipe, quiet=True)
    texts = ["a good film", "a bad film", "the film"]
    scores = []
    for device in ("cpu", "cuda"):
        predictor = Predictor(load(recipe.output), device=device, precision="float32")
        found: list[Any] = predictor.predict(predictor.records(texts))
        scores.append([answer.scores["good"] for answer in found])
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_trains_on_all_gpus(parallel: str, toy_recipe: Make, tmp_path: Path) -> None:
    """One GPU is a group of one; with more, each opens its own."""
    count = torch.cuda.device_count()
    recipe = toy_recipe(train__device="cuda", train__parallel=parallel, train__save_every=2)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    own = ["--master-port", str(free_port()), "-m", "pretune", "train", str(path)]
    done = subprocess.run(
        [sys.executable, *launcher, *own, "--resume", "auto"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((Path(recipe.output) / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 12
    assert "FlashAttention" not in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs an NVIDIA GPU more")
def test_a_shard_takes_a_share_of_the_memory(tmp_path: Path) -> None:
    """Each of the GPUs holds its share of 256 MiB of weights while they are cut up, and no more."""
    count = torch.cuda.device_count()
    program = tmp_path / "shard.py"
    program.write_text(
        "import torch, os\n"
        "from torch import nn\n"
        "from pretune.training.distributed import environment_world, joined, own_device\n"
        "from pretune.training.sharded import shard_model\n"
        "class M(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.backbone = nn.Module()\n"
        "        self.backbone.layers = nn.ModuleList(nn.Linear(4096, 4096) for _ in range(4))\n"
        "    def forward(self, x): return x\n"
        "world = environment_world()\n"
        "device = own_device('cuda', world)\n"
        "with joined(world, device):\n"
        "    shard_model(M(), device, world.size)\n"
        "    print('peak', torch.cuda.max_memory_allocated())\n",
        encoding="utf-8",
    )
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    done = subprocess.run(
        [sys.executable, *launcher, "--master-port", str(free_port()), str(program)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    peaks = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("peak")]
    assert len(peaks) == count
    assert max(peaks) < (256 << 20) / count + (48 << 20)
