"""Which tokens of an example its loss hangs on: gradient x input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle
from pretune.data.batch import PackedBatch
from pretune.evaluation.examine import Examined, batch_of
from pretune.inference.predict import task_of

#: An attention map of more tokens than this cannot be read.
MOST_TOKENS = 64


@dataclass(frozen=True)
class Explained:
    """What an example's loss hangs on.

    Attributes:
        tokens: its T tokens.
        attributions: `[T]` gradient x input, in nats: above 0 where the token raises the loss.
        attention: `[L, T, T]` each layer's attention, the mean over its heads; None where the model
            has none, or there are too many tokens to look at.
    """

    tokens: tuple[str, ...]
    attributions: tuple[float, ...]
    attention: Tensor | None = None


def explain(examined: Examined, number: int) -> Explained:
    """Attributions and attention of one example; of one with several sequences, of the worst.

    A sequence is read by itself, also where the evaluation carried a state to it.

    Args:
        examined: examples with their model.
        number: of the example.
    """
    bundle, task = examined.bundle, examined.task
    device = next(bundle.model.eval().parameters()).device
    worst = max(examined.examples[number].features, key=examined.losses.__getitem__)
    batch = batch_of(task, examined.features, worst).to(device)
    scores = gradient_times_input(bundle, batch)[1]
    tokens = bundle.tokenizer.tokens(batch.tokens.tolist())
    return Explained(tuple(tokens), tuple(scores.tolist()), _attention(bundle, batch))


def gradient_times_input(bundle: Bundle, batch: PackedBatch) -> tuple[float, Tensor]:
    """The loss of one sequence, and the dot product of each token's embedding and its gradient.

    That is how much the loss would change, to first order, if the embedding of the token grew: the
    derivative by a factor before it, at 1 (Shrikumar et al. 2016, arXiv:1605.01713; Denil et al.
    2014). The embedding is that of the vocabulary alone, without position and segment. Unlike
    integrated gradients, the attributions do not add up to any difference of losses.

    Args:
        bundle: model and task.
        batch: one feature.

    Returns:
        the loss, and `[T]` float32 attributions.
    """
    task = task_of(bundle)
    # cuDNN's recurrent layers have a gradient in training mode only.
    plain = torch.backends.cudnn.flags(enabled=False)
    embeddings = bundle.backbone.embeddings
    tables = [embeddings.tokens, getattr(embeddings, "targets", None)]
    with torch.enable_grad(), plain, _caught(*tables) as caught:
        loss = task.loss(task.forward(bundle.model, batch), batch)
        # Of a pair the source, then the target; whatever a search looked up is in no loss.
        gradients = torch.autograd.grad(loss.sum, caught, allow_unused=True)
    parts = [
        (gradient.float() * embedded.detach().float()).sum(-1).cpu()
        for gradient, embedded in zip(gradients, caught, strict=True)
        if gradient is not None
    ]
    scores = torch.cat(parts)
    if scores.dim() == 2:
        # Of each place the last n tokens, oldest first (NNLM): a token is in n of these.
        each = [F.pad(scores[n:, -1 - n], (0, n)) for n in range(min(scores.shape))]
        scores = torch.stack(each).sum(0)
    return float(loss.sum.detach()), scores


@contextmanager
def _caught(*modules: nn.Module | None) -> Iterator[list[Tensor]]:
    """What modules give, in the order of the calls, as leaves whose gradients can be asked for."""
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
    layers = bundle.backbone.layers
    if not len(layers) or batch.num_tokens > MOST_TOKENS or batch.num_sequences > 1:
        return None
    if not all(hasattr(layer, "attention_maps") for layer in layers):
        return None
    with torch.inference_mode():
        maps = bundle.backbone(batch, output_attentions=True).attentions
    # Each is a list of [heads, T, T], one a sequence.
    return torch.stack([layer[0].float().mean(0).cpu() for layer in maps])
