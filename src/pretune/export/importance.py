"""How much a model's heads and neurons matter: by the loss on data, or by their weights.

By the loss: the first-order estimate of how far the loss of an example moves when the output of a
unit becomes 0. With the unit's activations a and the gradient g of the loss by them that is the sum
of a * g over the tokens of the example; its absolute value, averaged over the examples, is the
importance of the unit (Michel et al. 2019, arXiv:1905.10650, equation 2, for heads; Molchanov et
al. 2017, arXiv:1611.06440, equation 8, for neurons). As in both, heads are then compared across
layers: the scores of a layer are divided by their l2 norm.

By the weights: the norm of all that a unit writes, times the norm of what it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle
from pretune.data.batch import Layout
from pretune.data.records import Records
from pretune.evaluation.examine import features_to_judge
from pretune.inference.predict import task_of
from pretune.inference.runtime import choose_device, evaluation_mode
from pretune.inference.strategies import strategy_for
from pretune.models.layers import FeedForward, GatedFeedForward, TransformerLayer
from pretune.models.pruned import block_of, own_layers
from pretune.tasks.base import drawn


@dataclass(frozen=True)
class Importance:
    """The importance of the units of each layer, in the order of the layers."""

    heads: tuple[Tensor, ...]  # `[H]` each, comparable across layers
    neurons: tuple[Tensor, ...]  # `[I]` each


def importance_by_loss(
    bundle: Bundle,
    records: Records,
    *,
    device: str = "auto",
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> Importance:
    """Measure how much the loss on labelled records depends on each unit.

    Args:
        bundle: a Transformer with its task.
        records: of the task, with their targets.
        device: where to compute.
        batch_tokens: tokens at a time; changes memory and speed only.
        progress: called with the number of sequences done, and of all.

    Raises:
        DataError: a record cannot be used, or none has anything to ask the model about.
    """
    task, target = task_of(bundle), choose_device(device)
    features = features_to_judge(bundle, records, target)
    model = bundle.model.to(target)
    tallies = [_Tally(layer) for layer in own_layers(bundle.backbone)]
    strategy, done = strategy_for(task, model, features), 0
    try:
        with evaluation_mode(model), torch.enable_grad():
            for which in strategy.batches(features.lengths, batch_tokens)[0]:
                batch = drawn(task, features.batch(which), seed=0, epoch=-1).to(target)
                outputs = strategy.forward(model, batch)
                strategy.commit()
                task.loss(outputs, batch).sum.backward()  # type: ignore[no-untyped-call]
                model.zero_grad()
                done += len(which)
                if progress is not None:
                    progress(done, len(features))
    finally:
        for tally in tallies:
            tally.close()
    heads = (_unit(tally.heads) for tally in tallies)
    return Importance(tuple(heads), tuple(tally.neurons for tally in tallies))


class _Tally:
    """Adds up, while it is attached, the importance of a layer's units over all examples."""

    def __init__(self, layer: TransformerLayer) -> None:
        attention, block = layer.attention, block_of(layer)
        self.heads = torch.zeros(attention.num_heads)
        self.neurons = torch.zeros(block.down.in_features)
        self._layout: Layout | None = None
        count, neurons = attention.num_heads, len(self.neurons)
        self._handles = [
            layer.register_forward_pre_hook(self._begin, with_kwargs=True),
            attention.output.register_forward_pre_hook(partial(self._watch, self.heads, count)),
            block.down.register_forward_pre_hook(partial(self._watch, self.neurons, neurons)),
        ]

    def close(self) -> None:
        """Detach from the layer."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        # The last layer may compute some rows of each sequence only.
        select = options.get("select")
        self._layout = args[1] if select is None else select.layout

    def _watch(self, sums: Tensor, units: int, part: nn.Module, args: tuple[Tensor]) -> None:
        """Add, once its gradient is known, an activation `[T, units * size]` to the sums."""
        (x,), layout = args, self._layout
        assert layout is not None  # noqa: S101 - the layer's own hook came before

        # Not `x` itself: it holds the hook, and the two would keep a whole graph alive.
        values = x.detach()

        def add(grad: Tensor) -> None:
            moved = (values * grad)[: layout.total].view(layout.total, units, -1).sum(-1)
            lengths = torch.tensor(layout.lengths, device=values.device)
            owner = torch.repeat_interleave(lengths)
            each = moved.new_zeros(len(lengths), units).index_add_(0, owner, moved)
            sums.add_(each.abs().sum(0).cpu())

        x.register_hook(add)  # type: ignore[no-untyped-call]


@torch.no_grad()
def importance_by_weights(bundle: Bundle) -> Importance:
    """Estimate how much each unit matters without data, by its weights."""
    heads, neurons = [], []
    for layer in own_layers(bundle.backbone):
        attention, block = layer.attention, block_of(layer)
        shared = attention.qkv.weight[-(attention.width // attention.sharing) :]
        values = shared.reshape(attention.num_kv_heads, -1).norm(dim=1)
        written = attention.output.weight.t().reshape(attention.num_heads, -1)
        heads.append(_unit(values.repeat_interleave(attention.sharing) * written.norm(dim=1)))
        neurons.append(_read(block) * block.down.weight.norm(dim=0))
    return Importance(tuple(heads), tuple(neurons))


def _read(block: FeedForward | GatedFeedForward) -> Tensor:
    """The norm of what each neuron reads, `[I]`; with a gate the product of both norms."""
    if isinstance(block, GatedFeedForward):
        gate, up = block.gate_up.weight.norm(dim=1).chunk(2)
        read: Tensor = gate * up
    else:
        read = block.up.weight.norm(dim=1)
    return read


def _unit(scores: Tensor) -> Tensor:
    norm = scores.norm()
    return scores / norm if norm > 0 else scores
