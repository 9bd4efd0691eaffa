"""Losses of a person's own, which a recipe names in `task.criterion`.

    @pretune.register("loss")
    def margin(outputs, targets):
        return torch.nn.functional.multi_margin_loss(outputs, targets, reduction="none")

A loss is computed for each example, and never a mean: the optimizer divides by the number of the
examples of a whole update, whatever parts it was computed in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pretune.errors import OwnCodeError, RecipeError, describe_value
from pretune.registry import Registry
from pretune.tasks.base import Loss
from pretune.text.foreign_errors import described_error

#: Functions, or modules of torch, of the outputs `[B, ...]` and the targets, which give `[B]`.
LOSSES: Registry[Callable[[Tensor, Tensor], Any]] = Registry("pretune.losses", "loss", {})


def own_loss(name: str, outputs: Tensor, targets: Tensor, labelled: Tensor) -> Loss:
    """Compute a loss of a person's own.

    Args:
        name: as it was registered.
        outputs: `[B, K]` logits, or `[B]` scores, in float32.
        targets: `[B]` or `[B, K]`, as the task has them.
        labelled: `[B]` bool: which examples have a target.

    Returns:
        the sum over the examples that have one, counted in all examples, as the task's own loss.

    Raises:
        RecipeError: no loss has this name.
        OwnCodeError: it failed, or did not give a number for each example.
    """
    function = LOSSES.find(name, error=RecipeError)
    counted = int(labelled.sum())
    try:
        values = function(outputs[labelled], targets[labelled])
    except (Exception, SystemExit) as error:
        raise OwnCodeError(
            f"task.criterion: the loss {name} failed: {described_error(error)}",
            f"It was given outputs {[*outputs[labelled].shape]} and targets "
            f"{[*targets[labelled].shape]} of the type {targets.dtype}.",
        ) from error
    if not isinstance(values, Tensor) or values.shape != (counted,):
        shape = [*values.shape] if isinstance(values, Tensor) else describe_value(values)
        raise OwnCodeError(
            f"task.criterion: the loss {name} gave {shape} for {counted} examples",
            "It has to give a tensor with one number for each of them: reduction='none'.",
        )
    if torch.is_grad_enabled() and not values.requires_grad and counted:
        raise OwnCodeError(
            f"task.criterion: what the loss {name} gave does not depend on the outputs",
            "Compute it from the outputs by operations of torch, without detach or item.",
        )
    return Loss(values.sum(), len(outputs))
