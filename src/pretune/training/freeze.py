"""Training only a part of a model: what is frozen, and reading a frozen backbone only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Features, PackedBatch
from pretune.data.batch_order import batches_by_length
from pretune.errors import RunError
from pretune.inference.runtime import precision_context
from pretune.inference.strategies import Strategy
from pretune.models.backbone import Backbone
from pretune.models.heads.pooled import PooledHead
from pretune.tasks.base import AnyTask, DrawsAnew, Head
from pretune.tasks.sentences import SentenceTask

#: What `train.freeze` accepts, a word, a number of layers, or a pattern of parameter names.
Freeze = str | Mapping[Literal["layers"], int]

#: Tokens at a time in `ReadOnce`. Batching changes what is learned, by rounding, so this is not an
#: option that a resumed run could change.
READ_TOKENS = 8192


def freeze(model: nn.Module, what: Freeze) -> int:
    """Stop parameters from being trained.

    Args:
        model: with a head; holds its backbone as `backbone`.
        what: `none`; `embeddings`; `backbone`; `{"layers": n}`: the embeddings and the first n
            layers; or a pattern of our parameter names, such as `backbone.layers.*.attention.*`.

    Returns:
        the number of parameters (single weights) left to train.

    Raises:
        RunError: no such parameter, not that many layers, or nothing is left to train.
    """
    for parameter in _matching(model, what):
        parameter.requires_grad_(False)
    left = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if left == 0:
        raise RunError("train.freeze: nothing is left to train", "Freeze less.")
    return left


def _matching(model: nn.Module, what: Freeze) -> list[nn.Parameter]:
    """The parameters that `train.freeze` names."""
    backbone = _backbone(model)
    if isinstance(what, Mapping):
        count, layers = what["layers"], list(backbone.layers)
        if not 0 <= count <= len(layers):
            raise RunError(
                f"train.freeze: {count} layers, but the model has {len(layers)}",
                f"Give a number from 0 to {len(layers)}.",
            )
        return [p for part in (backbone.embeddings, *layers[:count]) for p in part.parameters()]
    if what == "none":
        return []
    if what == "embeddings":
        return list(backbone.embeddings.parameters())
    if what == "backbone":
        return list(backbone.parameters())
    named = [p for name, p in model.named_parameters() if fnmatchcase(name, what)]
    if not named:
        examples = ", ".join([name for name, _ in model.named_parameters()][:3])
        raise RunError(
            f"train.freeze: no parameter is called '{what}'",
            f"none, embeddings, backbone, {{layers: N}}, or a pattern for names like {examples}.",
        )
    return named


def train_mode(model: nn.Module) -> None:
    """Set training mode, but keep the frozen bottom of the model in evaluation mode.

    Nothing learns there, so dropout would only be noise. Autograd keeps no graph for it, since
    neither its parameters nor its input need a gradient.
    """
    model.train()
    backbone = _backbone(model)
    # From the input up to the first part that learns.
    for part in (backbone.embeddings, *backbone.layers):
        if any(parameter.requires_grad for parameter in part.parameters()):
            return
        part.eval()
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        backbone.eval()


def _backbone(model: nn.Module) -> Backbone:
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    return backbone


def reads_once(task: Head, model: nn.Module, features: Features) -> bool:
    """Whether the backbone gives the head the same input in every epoch, so that it can be kept.

    That needs a frozen backbone and a head that reads one vector per feature.
    """
    frozen = not any(p.requires_grad for p in model.get_submodule("backbone").parameters())
    # Texts in windows have choices.
    usual = type(task).forward in (Head.forward, SentenceTask.forward)
    usual = usual and not isinstance(task, DrawsAnew)
    return frozen and usual and features.choices is None and isinstance(model, PooledHead)


class ReadOnce(Strategy):
    """Reads a frozen backbone once, and runs only the head on the vectors it gave."""

    def __init__(
        self,
        task: AnyTask,
        model: nn.Module,  # for which `reads_once` holds
        features: Features,
        *,
        device: torch.device,  # where the vectors are kept
        precision: str,  # of the backbone, as in `precision_context`
        progress: Callable[[int], None] | None = None,  # called with the number of features read
    ) -> None:
        super().__init__(task, features)
        assert isinstance(model, PooledHead)  # noqa: S101 - for the type checker
        self._model, self._device = model, device
        self._vectors = self._read(features, precision, progress)  # [N, hidden]

    @torch.no_grad()
    def _read(
        self, features: Features, precision: str, progress: Callable[[int], None] | None
    ) -> Tensor:
        vectors: Tensor | None = None
        done = 0
        for which in batches_by_length(features.lengths, READ_TOKENS):
            batch = features.batch(which).to(self._device)
            with precision_context(self._device, precision):
                read = self._model.read(batch)
            if vectors is None:  # now the size and the type are known
                vectors = read.new_empty(len(features), read.shape[1])
            vectors[batch.index.to(self._device)] = read
            done += len(which)
            if progress is not None:
                progress(done)
        assert vectors is not None  # noqa: S101 - there are features to train on
        return vectors

    @override
    def forward(self, module: nn.Module, batch: PackedBatch, *, keep: bool = True) -> Any:
        return self._model.answer(self._vectors[batch.index.to(self._device)])
