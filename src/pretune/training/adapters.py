"""Training by LoRA: when it makes sense, and reading its checkpoints back."""

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
from pretune.tasks.two_models import TrainsCompanion


def check_lora(recipe: Recipe) -> None:
    """Check that a recipe with `train.lora` makes sense."""
    if preset(recipe.model.source) is not None:
        raise RecipeError(
            "train.lora adds a little to what a model has learned; random weights have nothing",
            "Name a model with model.from, or leave out train.lora.",
        )
    if issubclass(task_class(recipe.task.name), TrainsCompanion):
        raise RecipeError(
            f"train.lora: {recipe.task.name} trains two models, each as a whole",
            "Leave out train.lora.",
        )
    if recipe.train.freeze != "none":
        raise RecipeError(
            "train.lora freezes everything except what it adds", "Leave out train.freeze."
        )


def frozen_digest(model: nn.Module) -> str | None:
    """SHA-256 of a model's frozen weights; None for a model without adapters.

    A checkpoint's adapter is meaningless beside other weights, for instance if somebody has trained
    the base model further in its folder.
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
    """Check that a checkpoint's adapter meets the frozen weights it was trained with."""
    if then is not None and then != now:
        raise RunError(
            f"{checkpoint}: its adapter was trained with other weights than {source} has now",
            "Put them back as they were; or start a new run from the merged weights: "
            f"pretune train RECIPE model.from={checkpoint} output=FOLDER",
        )


def weights_in(path: Path, bundle: Bundle) -> dict[str, Tensor]:
    """Read the weights of a checkpoint, by parameter name."""
    task, model = bundle.task, bundle.model
    if task is None or not adapters(model):
        # The live task stays bound to the run's own tokenizer.
        own = None if task is None else task.with_state(task.state())
        return load(path, task=own).model.state_dict()
    # The checkpoint's own weights have the adapter merged in; its adapter is kept apart, and what
    # is frozen never changes.
    model = copy.deepcopy(model)
    fill_adapter(model, path / ADAPTER, bundle.family, task.head)
    return model.state_dict()
