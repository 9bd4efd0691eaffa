"""Training only a part of a model."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from pretune.data.batch import Features
from pretune.data.batch_order import batches_by_length
from pretune.errors import RunError
from pretune.inference.runtime import precision_context
from pretune.models.backbone import Backbone
from pretune.models.heads.pooled import PooledHead
from pretune.tasks.base import AnyTask, Task

if TYPE_CHECKING:
    from pretune.training.loop import Trainer

#: What `train.freeze` may say: a word, `{layers: N}`, or a pattern of parameter names.
Freeze = str | Mapping[Literal["layers"], int]

#: Tokens at a time in `read_once`: how they are batched changes what is learned, by rounding, so
#: it is no option that a resumed run may change.
READ_TOKENS = 8192


def freeze(model: nn.Module, what: Freeze) -> int:
    """Stop parameters from being trained.

    Args:
        model: with a head; holds its backbone as `backbone`.
        what: `none`; `embeddings`; `backbone`; `{"layers": n}`: the embeddings and the first n
            layers; or a pattern of our parameter names, such as `backbone.layers.*.attention.*`.

    Returns:
        how many parameters (numbers) are left to train.

    Raises:
        RunError: nothing is called so, there are not so many layers, or nothing is left to train.
    """
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    frozen: list[nn.Parameter] = []
    if isinstance(what, Mapping):
        count = what["layers"]
        if not 0 <= count <= len(backbone.layers):
            raise RunError(
                f"train.freeze: {count} layers, but the model has {len(backbone.layers)}",
                f"Give a number from 0 to {len(backbone.layers)}.",
            )
        frozen += backbone.embeddings.parameters()
        for layer in list(backbone.layers)[:count]:
            frozen += layer.parameters()
    elif what == "embeddings":
        frozen += backbone.embeddings.parameters()
    elif what == "backbone":
        frozen += backbone.parameters()
    elif what != "none":
        frozen += [p for name, p in model.named_parameters() if fnmatchcase(name, what)]
        if not frozen:
            some = [name for name, _ in model.named_parameters()][:3]
            raise RunError(
                f"train.freeze: no parameter is called '{what}'",
                f"none, embeddings, backbone, {{layers: N}}, or a pattern for names such as "
                f"{', '.join(some)}.",
            )
    for parameter in frozen:
        parameter.requires_grad_(False)
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if left == 0:
        raise RunError("train.freeze: nothing is left to train", "Freeze less.")
    return left


def train_mode(model: nn.Module) -> None:
    """Training mode; but what is frozen, down to the input, is in evaluation mode.

    There nothing learns, so dropout would only be noise. Autograd keeps no graph for it, as
    neither its parameters nor its input need a gradient.
    """
    model.train()
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    for part in (backbone.embeddings, *backbone.layers):
        if any(parameter.requires_grad for parameter in part.parameters()):
            return
        part.eval()
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.eval()


def reads_once(task: AnyTask, model: nn.Module, features: Features) -> bool:
    """Whether what the head reads of the backbone is the same in every epoch, and can be kept.

    Not where the backbone learns, or where the head reads more than one vector a feature.
    """
    learns = any(p.requires_grad for p in model.get_submodule("backbone").parameters())
    usual = type(task).forward is Task.forward
    one = features.choices is None
    return usual and one and not learns and isinstance(model, PooledHead)


@torch.no_grad()
def read_once(trainer: Trainer) -> Tensor | None:
    """`[N, hidden]`: what a frozen backbone gives for each training feature; else None."""
    model, features, options = trainer.model, trainer.train, trainer.options
    if not isinstance(model, PooledHead) or not reads_once(trainer.task, model, features):
        return None
    kept: Tensor | None = None
    with trainer.reporter.working("reading once", len(features)) as done:
        seen = 0
        for which in batches_by_length(features.lengths, READ_TOKENS):
            batch = features.batch(which).to(trainer.device)
            with precision_context(trainer.device, options.precision):
                read = model.read(batch)
            if kept is None:
                kept = read.new_empty(len(features), read.shape[1])
            kept[batch.index.to(trainer.device)] = read
            seen += len(which)
            if done is not None:
                done(seen)
    return kept
