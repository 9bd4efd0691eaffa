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
    Linear,
    PostNormLayer,
    PreNormLayer,
    SelfAttention,
    TransformerLayer,
)
from pretune.models.packed import How, active, packable, version_of

#: With more tokens than this, the time of calls does not show.
FEW = 128
#: What a layer may consist of. Anything else, such as an adapter, is called as a module.
_KNOWN = {PostNormLayer, PreNormLayer, SelfAttention, FeedForward, Linear, nn.LayerNorm, Dropout}

#: A layer: hidden states, their layout, selected rows, a cache and its layer to hidden states.
LayerFunction = Callable[[Tensor, Layout, Selection | None, KVCache | None, int], Tensor]


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
    attention, block = layer.attention, layer.feed_forward
    rows, width = selected or count, attention.width
    heads, before, causal = attention.num_heads, layer.norm_first, layer.causal
    size = width // heads

    def prepared(linear: Linear, count: int, outputs: slice = slice(None)) -> _Map:
        own: How = "int8" if linear.int8 else how
        return linear.packed.prepared(own, count, linear.weight, linear.bias, outputs)

    # Queries only for the selected rows, keys and values for all.
    if selected:
        query = prepared(attention.qkv, rows, slice(width))
        keys_and_values = prepared(attention.qkv, count, slice(width, None))
    else:
        query = keys_and_values = prepared(attention.qkv, count)
    output = prepared(attention.output, rows)
    up, activation, down = prepared(block.up, rows), block.activation, prepared(block.down, rows)
    first, second = _norm(layer.attention_norm), _norm(layer.feed_forward_norm)

    def function(
        x: Tensor, layout: Layout, select: Selection | None, cache: KVCache | None, index: int
    ) -> Tensor:
        y = first(x) if before else x
        if select is None:
            queries = layout
            q, k, v = query(y).view(-1, 3, heads, size).unbind(1)
        else:
            queries, x = select.layout, x[select.rows]
            q = query(y[select.rows] if before else x).view(-1, heads, size)
            k, v = keys_and_values(y).view(-1, 2, heads, size).unbind(1)
        # One text, the usual case, needs no plan.
        if cache is None and len(layout.lengths) == 1 and (select is None or not causal):
            mixed = attention_single(q, k, v, causal=causal).flatten(1)
        else:
            mixed = attention.mix(q, k, v, queries, layout, causal, cache, index)
        # Both blocks add to a result of their own, in place: nothing else has seen it.
        x = output(mixed).add_(x)
        x = x if before else first(x)
        x = down(activation(up(second(x) if before else x))).add_(x)
        return x if before else second(x)

    return function


_Map = Callable[[Tensor], Tensor]


def _norm(norm: nn.LayerNorm) -> _Map:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps, False)
