"""Training by LoRA: what it is for, and what its checkpoints hold."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor

from pretune.errors import RecipeError
from pretune.hub import fill_adapter
from pretune.models import SIZES, adapters
from pretune.recipe import Recipe
from pretune.tasks import task_class
from pretune.tasks.bundle import ADAPTER, Bundle, load


def check_lora(recipe: Recipe) -> None:
    """See that a recipe with `train.lora` makes sense.

    Raises:
        RecipeError: it does not; says why.
    """
    if recipe.model.source in SIZES:
        raise RecipeError(
            "train.lora: it adds a little to what a model has learned; random weights have not",
            "Name a model with model.from, or leave out train.lora.",
        )
    if recipe.train.freeze != "none":
        raise RecipeError("train.lora freezes all but what it adds", "Leave out train.freeze.")
    if task_class(recipe.task.name)(recipe.task).head != "causal_lm":
        raise RecipeError(
            f"train.lora: the task {recipe.task.name} has a head that must learn",
            "LoRA is for language models: the tasks causal_lm, chat and instruct.",
        )


def weights_in(path: Path, bundle: Bundle) -> dict[str, Tensor]:
    """The weights in a checkpoint of a run, by the names of what is trained.

    Args:
        path: the checkpoint.
        bundle: what is trained.
    """
    task, model = bundle.task, bundle.model
    if task is None or not adapters(model):
        return load(path, task=task).model.state_dict()
    # What an adapter is beside never changes, and the checkpoint has the two only merged.
    model = copy.deepcopy(model)
    fill_adapter(model, path / ADAPTER, bundle.family, task.head)
    return model.state_dict()
