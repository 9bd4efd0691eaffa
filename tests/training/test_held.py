"""What processes of a group hold, by gloo, and what a plan says they would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pretune.bundle.bundle import load
from pretune.experiments.gpu_memory import GpuMemory, Sizes, TracedStep, gpu_memory
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from tests.training.groups import Together

Make = Callable[..., Recipe]

pytestmark = pytest.mark.slow


def planned(recipe: Recipe, processes: int) -> GpuMemory:
    """By the shapes alone; the activations are left out."""
    bundle = load(
        recipe.model.source, task=Classify(ClassifyOptions(max_length=16), ["bad", "good"])
    )
    model = bundle.model.to("meta")
    return gpu_memory(
        Sizes.of(model, processes),
        TracedStep(1, 1, 0, 0, 0),
        parallel=recipe.train.parallel,
        recompute=False,
        processes=processes,
        accumulates=recipe.train.accumulate > 1,
        average=recipe.train.ema is not None,
        others=0,
        capacity=2**30,
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize(
    "changes",
    [{"parallel": "ddp", "ema": 0.9}, {"parallel": "fsdp"}, {"parallel": "fsdp", "accumulate": 2}],
    ids=["ddp", "fsdp", "fsdp-accumulate"],
)
def test_of_each_process(
    changes: dict[str, Any], processes: int, toy_recipe: Make, together: Together
) -> None:
    own = {f"train__{key}": value for key, value in changes.items()}
    recipe = toy_recipe(**own, train__max_steps=3, data__validation=None)
    together.train(processes, recipe, change="hold")
    lines = together.said().splitlines()
    held = [json.loads(text[5:]) for text in lines if text.startswith("held ")]
    assert sorted(found["rank"] for found in held) == list(range(processes))
    plan = planned(recipe, processes)
    for found in held:
        for part in ("weights", "gradients", "optimizer", "average"):
            said = getattr(plan, part)
            if found["rank"] == 0:
                assert found[part] == pytest.approx(said, rel=0.01), part
            # The others have at most as many rows as the first.
            assert 0.25 * said <= found[part] <= said, (part, found["rank"])
    if changes["parallel"] == "ddp" and processes > 1:
        assert {found["buckets"] for found in held} == {plan.exchange}
