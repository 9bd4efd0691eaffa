"""How much each token of an example contributes to its loss: gradient x input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle
from pretune.data.batch import FeatureSet, PackedBatch
from pretune.evaluation.examine import Examined, batch_of
from pretune.inference.predict import task_of
from pretune.tasks.certainty import HasCertainty

#: Attention maps of more tokens cannot be read.
MAX_MAP_TOKENS = 64


@dataclass(frozen=True)
class Explained:
    """Attributions and attention of one sequence."""

    tokens: tuple[str, ...]
    attributions: tuple[float, ...]  # `[T]` gradient x input, in nats; above 0: raises the loss
    attention: Tensor | None = None  # `[L, T, T]` mean over heads; None: no attention or too long


def explain(examined: Examined, number: int) -> Explained:
    """Explain an example; of several sequences the one with the highest loss.

    The sequence is read by itself, also where the evaluation carried a state to it.
    """
    bundle, task = examined.bundle, examined.task
    device = next(bundle.model.eval().parameters()).device
    worst = max(examined.examples[number].features, key=examined.losses.__getitem__)
    batch = batch_of(task, examined.features, worst).to(device)
    scores = gradient_times_input(bundle, batch)[1]
    tokens = bundle.tokenizer.tokens(batch.tokens.tolist())
    return Explained(tuple(tokens), tuple(scores.tolist()), _attention(bundle, batch))


def explain_answer(
    bundle: Bundle, features: FeatureSet, which: int, *, attention: bool = False
) -> tuple[float, Explained]:
    """Explain the answer to a sequence, whose right answer need not be known.

    Args:
        bundle: of a task that `HasCertainty`.
        features: without targets.
        which: the number of one of them.
        attention: whether to return attention maps too.

    Returns:
        how sure the model is, and the attributions of that: above 0 speaks for the answer.
    """
    task, device = task_of(bundle), next(bundle.model.eval().parameters()).device
    assert isinstance(task, HasCertainty)  # noqa: S101 - the caller checked
    batch = features.batch(np.array([which])).to(device)
    certainty, scores = gradient_times_input(bundle, batch, task.certainty)
    tokens = bundle.tokenizer.tokens(batch.tokens.tolist())
    maps = _attention(bundle, batch) if attention else None
    return certainty, Explained(tuple(tokens), tuple(scores.tolist()), maps)


def gradient_times_input(
    bundle: Bundle,
    batch: PackedBatch,
    value: Callable[[Any, PackedBatch], Tensor] | None = None,
) -> tuple[float, Tensor]:
    """Return the loss of one sequence, and embedding · gradient for each token, `[T]` float32.

    With `value`, a function of the outputs and the batch, that takes the place of the loss.

    The product is the derivative of the loss by a factor before the token's embedding, at 1
    (Shrikumar et al. 2016, arXiv:1605.01713; Denil et al. 2014). Only the embedding of the
    vocabulary counts, not position and segment. Unlike integrated gradients, the attributions do
    not add up to a difference of losses.
    """
    task = task_of(bundle)
    # In evaluation mode cuDNN's recurrent layers have no gradient.
    plain = torch.backends.cudnn.flags(enabled=False)
    embeddings = bundle.backbone.embeddings
    tables = [embeddings.tokens, getattr(embeddings, "targets", None)]
    with torch.enable_grad(), plain, _caught(*tables) as caught:
        outputs = task.forward(bundle.model, batch)
        loss = task.loss(outputs, batch).sum if value is None else value(outputs, batch)
        if not caught:  # nothing was read: without a reply a prompt has no loss
            return float(loss.detach()), torch.zeros(batch.num_tokens)
        # For a translation the source, then the target; an unused lookup has no gradient.
        gradients = torch.autograd.grad(loss, caught, allow_unused=True)
    parts = [
        (gradient.float() * embedded.detach().float()).sum(-1).cpu()
        for gradient, embedded in zip(gradients, caught, strict=True)
        if gradient is not None
    ]
    scores = torch.cat(parts)
    if scores.dim() == 2:
        # An NNLM looks up the last n tokens of each position, oldest first: sum a token's n shares.
        each = [F.pad(scores[n:, -1 - n], (0, n)) for n in range(min(scores.shape))]
        scores = torch.stack(each).sum(0)
    return float(loss.detach()), scores


@contextmanager
def _caught(*modules: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the outputs of modules, in the order of the calls, as leaves with gradients."""
    caught: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handles = [module.register_forward_hook(keep) for module in modules if module is not None]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _attention(bundle: Bundle, batch: PackedBatch) -> Tensor | None:
    """Return the maps of `Explained.attention`."""
    layers = bundle.backbone.layers
    if not len(layers) or batch.num_tokens > MAX_MAP_TOKENS or batch.num_sequences > 1:
        return None
    if not all(hasattr(layer, "attention_maps") for layer in layers):
        return None
    with torch.inference_mode():
        maps = bundle.backbone(batch, output_attentions=True).attentions
    # Each is a list of [heads, T, T], one a sequence.
    return torch.stack([layer[0].float().mean(0).cpu() for layer in maps])
