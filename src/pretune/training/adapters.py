"""Training by LoRA: what it is for, and what its checkpoints hold."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from pretune.bundle.bundle import ADAPTER, Bundle, load
from pretune.checkpoints.peft import fill_adapter
from pretune.errors import RecipeError, RunError
from pretune.models.families import preset
from pretune.models.lora import adapters
from pretune.recipe.recipe import Recipe
from pretune.tasks.builtin import task_class


def check_lora(recipe: Recipe) -> None:
    """See that a recipe with `train.lora` makes sense.

    Raises:
        RecipeError: it does not; says why.
    """
    if preset(recipe.model.source) is not None:
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


def frozen_digest(model: nn.Module) -> str | None:
    """A SHA-256 of what the adapters of a model are beside; None where it has none.

    A checkpoint's adapter means nothing beside other weights, such as those of a base that was
    trained on, in the same folder, since.
    """
    if not adapters(model):
        return None
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(then: str | None, now: str | None, checkpoint: Path, source: str) -> None:
    """See that a checkpoint's adapter is put beside the weights that it was trained beside.

    Args:
        then: `frozen_digest` when the checkpoint was written; None: not known.
        now: that of the model it is for.
        checkpoint: for the error.
        source: where the weights are from.

    Raises:
        RunError: they are others.
    """
    if then is not None and then != now:
        raise RunError(
            f"{checkpoint}: its adapter was trained beside other weights than {source} has now",
            "Put them back as they were; or start a new run from the merged weights: "
            f"pretune train RECIPE model.from={checkpoint} output=FOLDER",
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
