"""One function a layer, for a pass of few tokens, such as one text or the next token of a text.

There what happens between the products counts: the weights of each layer push the code and the data
of everything else out of the processor's near caches, and every call has to be fetched again. This
is what `TransformerLayer.forward` computes, with the same operations in the same order, but what is
checked is checked for all layers at once, and no module calls another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from pretune.data.batch import Layout, Selection
from pretune.models import kernels
from pretune.models.attention import attention_single
from pretune.models.kv_cache import KVCache
from pretune.models.layers import (
    Dropout,
    FeedForward,
    GatedFeedForward,
    Linear,
    PostNormLayer,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    TransformerLayer,
)
from pretune.models.ops import gated
from pretune.models.packed import How, active, packable, version_of
from pretune.models.rope import Turns

#: With more tokens than this, the time of calls does not show.
FEW = 128
#: What a layer may consist of. Anything else, such as an adapter, is called as a module.
_KNOWN = {
    *(PostNormLayer, PreNormLayer, SelfAttention, FeedForward, GatedFeedForward, Linear),
    *(nn.LayerNorm, RMSNorm, nn.Identity, Dropout),
}

#: A layer: hidden states, their layout, selected rows, a cache and its layer, and the angles of
#: rotary positions to hidden states.
LayerFunction = Callable[
    [Tensor, Layout, Selection | None, KVCache | None, int, Turns | None], Tensor
]


class _Made(NamedTuple):
    """The functions of all layers, and what they were made from.

    Attributes:
        state: see `_state`.
        standing: what the kernels were chosen from.
        functions: None where the layers have to be called as modules.
    """

    state: list[int]
    standing: object
    functions: list[LayerFunction] | None


class FewRows:
    """The functions of a model's layers, ready for passes of few rows; copies are empty."""

    def __init__(self) -> None:
        self._made: dict[tuple[How, int, int], _Made] = {}

    def __reduce__(self) -> tuple[type[FewRows], tuple[()]]:
        return FewRows, ()

    def functions(
        self, layers: nn.ModuleList, x: Tensor, select: Selection | None
    ) -> list[LayerFunction] | None:
        """Give a function for each layer, or None where the layers have to be called.

        There are functions inside `packing`, without gradients, for float32 on a CPU, for layers of
        which no part is of another class, has a hook, or is being trained.

        Args:
            layers: of the model.
            x: `[T, hidden]`, the first hidden states.
            select: the rows that the last layer computes; None: all.
        """
        how, count = active(), x.shape[0]
        if how is None or not 0 < count <= FEW or not packable(x):
            return None
        if torch.is_autocast_enabled("cpu") or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return None
        state = _state(layers)
        if state is None:
            return None
        # Made anew where a weight, or what chooses the kernels, is another one by now.
        rows = 0 if select is None else select.rows.shape[0]
        key = (how, kernels.bucket(count), kernels.bucket(rows) if rows else 0)
        known = self._made.get(key)
        if known is None or known.state != state or known.standing is not kernels.standing():
            made = _functions(layers, how, count, rows)
            known = self._made[key] = _Made(state, kernels.standing(), made)
        return known.functions


def _state(layers: Iterable[nn.Module]) -> list[int] | None:
    """Which modules and weights there are, and the versions of these; None for other layers."""
    if module._global_forward_hooks or module._global_forward_pre_hooks:
        return None
    state: list[int] = []
    for layer in layers:
        parts: list[nn.Module | None] = [layer, *layer._modules.values()]
        for block in layer._modules.values():
            if block is not None:
                parts += block._modules.values()
        for part in parts:
            if type(part) not in _KNOWN or part.training:  # type: ignore[union-attr]
                return None
            assert part is not None  # noqa: S101 - for mypy
            if part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__:
                return None
            state += (id(part), part.__dict__.get("int8", False))
            for weight in part._parameters.values():
                if weight is not None:
                    state += (id(weight), weight.data_ptr(), version_of(weight))
    return state


def _functions(
    layers: nn.ModuleList, how: How, count: int, rows: int
) -> list[LayerFunction] | None:
    """A function for each layer; the last one for `rows` selected rows, unless that is 0."""
    if not all(packable(weight) for weight in layers.parameters()):
        return None
    last = len(layers) - 1
    return [
        _function(layer, how, count, rows if i == last else 0)
        for i, layer in enumerate(layers)
        if isinstance(layer, TransformerLayer)
    ]


def _function(layer: TransformerLayer, how: How, count: int, selected: int) -> LayerFunction:
    """A layer as a function of about `count` rows, or of `selected` rows among them."""
    attention, rows = layer.attention, selected or count
    before, causal, width = layer.norm_first, layer.causal, attention.width
    heads, shared = attention.num_heads, attention.num_kv_heads
    size = width // heads
    plain = attention.window is None and attention.bare_scores

    # Queries only for the selected rows, keys and values for all.
    if selected:
        query = _prepared(attention.qkv, how, rows, slice(width))
        keys_and_values = _prepared(attention.qkv, how, count, slice(width, None))
    else:
        query = keys_and_values = _prepared(attention.qkv, how, count)
    output, block = _prepared(attention.output, how, rows), _block(layer.feed_forward, how, rows)
    first, second = _norm(layer.attention_norm), _norm(layer.feed_forward_norm)

    def function(
        x: Tensor,
        layout: Layout,
        select: Selection | None,
        cache: KVCache | None,
        index: int,
        turns: Turns | None,
    ) -> Tensor:
        y = first(x) if before else x
        if select is None:
            queries = layout
            q, k, v = attention.heads(query(y), turns)
        else:
            queries, x = select.layout, x[select.rows]
            q = query(y[select.rows] if before else x).view(-1, heads, size)
            k, v = keys_and_values(y).view(-1, 2, shared, size).unbind(1)
            q, k = attention.placed(q, k, turns, select)
        # One text, the usual case, needs no plan.
        if plain and cache is None and len(layout.lengths) == 1 and (select is None or not causal):
            mixed = attention_single(q, k, v, causal=causal, scale=attention.scale).flatten(1)
        else:
            places = attention.places(select, layout, causal=causal)
            mixed = attention.mix(q, k, v, queries, layout, causal, cache, index, places)
        # Both blocks add to a result of their own, in place: nothing else has seen it.
        x = output(mixed).add_(x)
        x = x if before else first(x)
        x = block(second(x) if before else x).add_(x)
        return x if before else second(x)

    return function


_Map = Callable[[Tensor], Tensor]


def _prepared(linear: Linear, how: How, count: int, outputs: slice = slice(None)) -> _Map:
    own: How = "int8" if linear.int8 else how
    return linear.packed.prepared(own, count, linear.weight, linear.bias, outputs)


def _block(block: nn.Module, how: How, rows: int) -> _Map:
    """A feed-forward block, of the kinds in `_KNOWN`."""
    assert isinstance(block, FeedForward | GatedFeedForward)  # noqa: S101 - for mypy
    activation, down = block.activation, _prepared(block.down, how, rows)
    if isinstance(block, FeedForward):
        up = _prepared(block.up, how, rows)
        return lambda x: down(activation(up(x)))
    gate_up = _prepared(block.gate_up, how, rows)

    return lambda x: down(gated(gate_up(x), activation))


def _norm(norm: nn.Module) -> _Map:
    """A norm, of the kinds in `_KNOWN`."""
    if isinstance(norm, nn.Identity):
        return lambda x: x
    if isinstance(norm, RMSNorm):
        weight, eps = norm.weight + norm.offset if norm.offset else norm.weight, norm.eps
        return lambda x: torch.rms_norm(x, weight.shape, weight, eps)
    assert isinstance(norm, nn.LayerNorm)  # noqa: S101 - for mypy: one of `_KNOWN`
    own = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return lambda x: torch.layer_norm(x, *own, False)
