"""Writes the layers that all Transformers here are made of, for padded batches.

Hidden states are `[batch, sequence, hidden]`; what may not be attended to is a mask of numbers that
are added to the scores: 0, or a very low one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnx import TensorProto
from torch import Tensor

from pretune.export.onnx_graph import MASKED, GraphWriter
from pretune.export.onnx_record import record
from pretune.models.layers import CrossAttention, SelfAttention, TransformerLayer


@dataclass(frozen=True)
class KeysValues:
    """The keys and values of an attention, each `[batch, heads, tokens, size]`."""

    keys: str
    values: str


def allowed_mask(graph: GraphWriter, allowed: str) -> str:
    """Turn a bool tensor, True where a query may look, into numbers to add to the scores."""
    return graph.add("Where", allowed, graph.number(0.0), graph.number(MASKED))


def padding_mask(graph: GraphWriter, attention_mask: str) -> str:
    """The mask `[batch, 1, 1, keys]` of `attention_mask`, which is 0 for padding."""
    real = graph.add("Cast", attention_mask, to=TensorProto.BOOL)
    return allowed_mask(graph, graph.unsqueeze(real, 1, 2))


def causal_mask(graph: GraphWriter, queries: str, keys: str, attention_mask: str | None) -> str:
    """The mask of queries that are the last of all keys: each sees itself and those before it.

    Args:
        graph: to write to.
        queries: their number, a vector of length 1.
        keys: the number of all keys.
        attention_mask: `[batch, keys]`, 0 for padding; None: there is none.

    Returns:
        `[1 or batch, 1, queries, keys]`.
    """
    own = graph.add("Add", graph.range_to(queries), graph.add("Sub", keys, queries))
    before = graph.add(
        "LessOrEqual", graph.unsqueeze(graph.range_to(keys), 0), graph.unsqueeze(own, 1)
    )
    before = graph.unsqueeze(before, 0, 1)
    if attention_mask is None:
        return allowed_mask(graph, before)
    real = graph.unsqueeze(graph.add("Cast", attention_mask, to=TensorProto.BOOL), 1, 2)
    return allowed_mask(graph, graph.add("And", before, real))


def _heads(graph: GraphWriter, x: str, heads: int, size: int, parts: int = 1) -> list[str]:
    """Split `[batch, tokens, parts * heads * size]` into `[batch, heads, tokens, size]` each."""
    pieces = [x]
    if parts > 1:
        width = heads * size
        pieces = graph.add_many("Split", parts, x, graph.ints(*[width] * parts), axis=-1)
    shape = graph.ints(0, 0, heads, size)
    apart = [graph.add("Reshape", piece, shape) for piece in pieces]
    return [graph.add("Transpose", piece, perm=[0, 2, 1, 3]) for piece in apart]


def _attend(graph: GraphWriter, q: str, seen: KeysValues, mask: str, size: int) -> str:
    """Scaled dot-product attention (Vaswani et al. 2017, equation 1): `[batch, tokens, hidden]`."""
    turned = graph.add("Transpose", seen.keys, perm=[0, 1, 3, 2])
    scores = graph.add("Mul", graph.add("MatMul", q, turned), graph.number(1 / math.sqrt(size)))
    weights = graph.add("Softmax", graph.add("Add", scores, mask), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, seen.values), perm=[0, 2, 1, 3])
    return graph.add("Reshape", mixed, graph.ints(0, 0, -1))


def _self_attention(
    graph: GraphWriter, part: SelfAttention, x: str, mask: str, past: KeysValues | None
) -> tuple[str, KeysValues]:
    """Write self-attention, after keys and values of earlier tokens if there are any.

    Returns:
        the output, and the keys and values of all tokens so far.
    """
    size = _head_size(part.qkv, 3 * part.num_heads)
    qkv = graph.linear(x, part.qkv.weight, part.qkv.bias)
    q, keys, values = _heads(graph, qkv, part.num_heads, size, 3)
    if past is not None:
        keys = graph.add("Concat", past.keys, keys, axis=2)
        values = graph.add("Concat", past.values, values, axis=2)
    seen = KeysValues(keys, values)
    mixed = _attend(graph, q, seen, mask, size)
    return graph.linear(mixed, part.output.weight, part.output.bias), seen


def source_keys(graph: GraphWriter, part: CrossAttention, source: str) -> KeysValues:
    """Write the keys and values that a decoder's layer reads of the encoder's output."""
    size = _head_size(part.kv, 2 * part.num_heads)
    kv = graph.linear(source, part.kv.weight, part.kv.bias)
    return KeysValues(*_heads(graph, kv, part.num_heads, size, 2))


def _cross_attention(
    graph: GraphWriter, part: CrossAttention, x: str, source: KeysValues, mask: str
) -> str:
    size = _head_size(part.query, part.num_heads)
    (q,) = _heads(graph, graph.linear(x, part.query.weight, part.query.bias), part.num_heads, size)
    mixed = _attend(graph, q, source, mask, size)
    return graph.linear(mixed, part.output.weight, part.output.bias)


def write_layer(
    graph: GraphWriter,
    layer: TransformerLayer,
    x: str,
    mask: str,
    *,
    past: KeysValues | None = None,
    source: KeysValues | None = None,
    source_mask: str = "",
) -> tuple[str, KeysValues]:
    """Write a layer as `TransformerLayer.forward` computes it.

    Args:
        graph: to write to.
        layer: with its weights.
        x: hidden states.
        mask: of the self-attention.
        past: keys and values of earlier tokens.
        source: what a layer with cross-attention reads of the source.
        source_mask: of the cross-attention.

    Returns:
        the hidden states, and the keys and values of all tokens so far.
    """
    first = layer.norm_first

    def norm(part: Any, value: str, *, wanted: bool) -> str:
        return write_norm(graph, part, value) if wanted else value

    before = norm(layer.attention_norm, x, wanted=first)
    attended, seen = _self_attention(graph, layer.attention, before, mask, past)
    x = norm(layer.attention_norm, graph.add("Add", attended, x), wanted=not first)
    # Each target looks at its source.
    if layer.cross is not None and source is not None:
        before = norm(layer.cross_norm, x, wanted=first)
        mixed = _cross_attention(graph, layer.cross, before, source, source_mask)
        x = norm(layer.cross_norm, graph.add("Add", mixed, x), wanted=not first)
    # The feed-forward block, with whatever function lies between its two products.
    block = layer.feed_forward
    before = norm(layer.feed_forward_norm, x, wanted=first)
    up = record(graph, block.activation, graph.linear(before, block.up.weight, block.up.bias))
    down = graph.linear(up, block.down.weight, block.down.bias)
    x = norm(layer.feed_forward_norm, graph.add("Add", down, x), wanted=not first)
    return x, seen


def write_norm(graph: GraphWriter, norm: Any, x: str) -> str:
    """Write a LayerNorm."""
    return graph.layer_norm(x, norm.weight, norm.bias, norm.eps)


def _head_size(linear: Any, blocks: int) -> int:
    """The width of a head, by a product that gives so many blocks of that width."""
    weight: Tensor = linear.weight
    return len(weight) // blocks
