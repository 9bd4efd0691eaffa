"""The building blocks of all Transformers here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.data.batch import Layout, Selection
from pretune.models import ops
from pretune.models.attention import (
    ScoreBias,
    attention,
    attention_after,
    attention_maps,
    attention_step,
)
from pretune.models.kv_cache import KVCache
from pretune.models.packed import PackedWeights, active
from pretune.models.rope import Rope, Turns


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


#: Activation functions by the names `config.json` files use.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # x * Phi(x), exact (erf): BERT
    "gelu_new": _gelu_tanh,  # the tanh approximation: GPT-2
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
#: The gradients of some of them, written into `grad_input`, of the gradient above and the input.
DERIVATIVES: dict[Callable[[Tensor], Tensor], Callable[..., Tensor]] = {
    F.gelu: torch.ops.aten.gelu_backward.grad_input,
    _gelu_tanh: partial(torch.ops.aten.gelu_backward.grad_input, approximate="tanh"),
    F.silu: torch.ops.aten.silu_backward.grad_input,
}


@dataclass(frozen=True)
class ModelOutput:
    """What a backbone returns, under the names that transformers uses.

    Attributes:
        last_hidden_state: `[T, hidden]`, or `[R, hidden]` for selected rows.
        pooler_output: `[B, hidden]`, for models with a pooler.
        hidden_states: 1 + L tensors `[T, hidden]`: the embeddings, then each layer's output.
        attentions: for each of the L layers, for each sequence, the map `[H, length, length]`.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[list[Tensor], ...] | None = None


class Linear(nn.Linear):
    """`nn.Linear` for `[rows, in]`, by the fastest matrix product of this machine."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.packed = PackedWeights()

    #: Whether the weight is one of 8 bits, and is multiplied so in any precision.
    int8 = False
    #: Whether outputs may stay in bf16 where products are in bf16, because they go through an
    #: activation into another product.
    keep_bf16 = False
    #: The rows of each matrix that lies in this one, where they are not equal.
    parts: tuple[int, ...] = ()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's own name
        """Map `[rows, in]` to `[rows, out]`."""
        return self.part(input, slice(None), keep_bf16=self.keep_bf16)

    def part(self, x: Tensor, outputs: slice, *, keep_bf16: bool = False) -> Tensor:
        """Some of the outputs only."""
        how = active(self.int8)
        if how is not None:
            product = self.packed.product(how, x, self.weight, self.bias, outputs)
            if product is not None:
                return product
        if outputs == slice(None):
            return ops.linear(x, self.weight, self.bias, keep_bf16=keep_bf16)
        bias = None if self.bias is None else self.bias[outputs]
        return ops.linear(x, self.weight[outputs], bias, keep_bf16=keep_bf16)

    def grow(self, added: int) -> None:
        """Add outputs to a map without bias; see `sample_rows`."""
        self.weight = _with_more_rows(self.weight, added)
        self.out_features = len(self.weight)


class Embedding(nn.Embedding):
    """`nn.Embedding` that is quick to make on the meta device."""

    #: Whether the table is stored in 8 bits; it is looked up as the floats that these stand for.
    int8 = False

    def reset_parameters(self) -> None:
        """Initialise as PyTorch does, but skip the meta device, where that imports the compiler."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def grown(self, added: int) -> Embedding:
        """A copy with `added` more rows; see `sample_rows`."""
        grown = Embedding(1, self.embedding_dim)
        grown.weight = _with_more_rows(self.weight, added)
        grown.num_embeddings = len(grown.weight)
        return grown


def _with_more_rows(weight: Tensor, added: int) -> nn.Parameter:
    """A parameter with `added` more rows; see `sample_rows`."""
    with torch.no_grad():
        table = torch.cat([weight, sample_rows(weight, added)])
    return nn.Parameter(table, requires_grad=weight.requires_grad)


def sample_rows(rows: Tensor, count: int) -> Tensor:
    """Draw new rows around the mean of existing ones, in the directions in which those vary.

    They follow a normal distribution with the rows' mean and 1e-9 of their covariance, so that new
    tokens start with an average probability (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Args:
        rows: `[N, hidden]`.
        count: how many to draw.

    Returns:
        `[count, hidden]`.
    """
    mean = rows.mean(0)
    centred = rows - mean
    # A sum of the centred rows with normal weights has their covariance (times the weights').
    weights = torch.randn(count, len(rows), device=rows.device, dtype=rows.dtype)
    drawn: Tensor = mean + weights @ centred * (1e-9 / len(rows)) ** 0.5
    return drawn


class Dropout(nn.Dropout):
    """`nn.Dropout` with a mask that is cheap to draw on a CPU; see `ops.dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's own name
        """Drop elements; the shape stays."""
        return ops.dropout(input, self.p, self.training)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight), in float32 (Zhang and Sennrich 2019).

    Args:
        size: of the last dimension.
        eps: added to the mean.
        offset: added to the weight, which then starts at 0 (Gemma: 1).
    """

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Norm the last dimension; the shape stays."""
        weight = self.weight + self.offset if self.offset else self.weight
        normed: Tensor = F.rms_norm(x.to(weight.dtype), weight.shape, weight, self.eps)
        return normed.to(x.dtype)


def sinusoidal_positions(count: int, hidden_size: int, *, interleaved: bool = True) -> Tensor:
    """The table of fixed position vectors, `[count, hidden]` (Vaswani et al. 2017, section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i / hidden)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / hidden)).

    Args:
        count: number of positions.
        hidden_size: width of the vectors.
        interleaved: False for all sines followed by all cosines, as in Marian.
    """
    # On the CPU whatever the default device: a model built on the meta device would never get the
    # table, as no checkpoint holds it. In float64 until the end: in float32 an angle of thousands
    # of radians has few digits left after the point.
    even = torch.arange(0, hidden_size, 2, dtype=torch.float64, device="cpu")
    rate = torch.exp(even * (-math.log(10000.0) / hidden_size))
    angle = torch.arange(count, device="cpu")[:, None] * rate
    sines, cosines = angle.sin().float(), angle.cos()[:, : hidden_size // 2].float()
    if not interleaved:
        return torch.cat([sines, cosines], 1)
    table = torch.empty(count, hidden_size, device="cpu")
    table[:, 0::2] = sines
    table[:, 1::2] = cosines
    return table


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2).

    Query, key and value share one matrix `[(H + 2 K) * D, hidden]`, in this order, for one product
    instead of three: H heads of queries, and K of keys and of values, D wide each.

    Args:
        hidden_size: width of the residual stream.
        num_heads: H.
        dropout: on the attention weights.
        num_kv_heads: K, a divisor of H (Ainslie et al. 2023); default: H.
        head_dim: D; default: hidden_size / H.
        qkv_bias: whether queries, keys and values have a bias.
        output_bias: whether the output has one.
        scale: factor on the products of queries and keys; default: 1 / sqrt(D).
        window: a query sees only keys at a distance below this.
        rope: turns queries and keys by their positions.
        query_norm: a norm of each head's queries, before they are turned.
        key_norm: a norm of each head's keys, before they are turned.
        score_bias: see `attention`. A module is not made a part of this one, as layers may share
            it: its owner has to register it.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        output_bias: bool = True,
        scale: float | None = None,
        window: int | None = None,
        rope: Rope | None = None,
        query_norm: nn.Module | None = None,
        key_norm: nn.Module | None = None,
        score_bias: ScoreBias | None = None,
    ) -> None:
        super().__init__()
        size = hidden_size // num_heads if head_dim is None else head_dim
        self.num_heads = num_heads
        self.sharing = 1 if num_kv_heads is None else num_heads // num_kv_heads
        self.width = num_heads * size  # of all heads; less where heads were removed
        self.dropout = dropout
        self.scale, self.window, self.rope = scale, window, rope
        self._score_bias = (score_bias,)  # in a tuple: no submodule
        shared = self.width // self.sharing
        self.qkv = Linear(hidden_size, self.width + 2 * shared, bias=qkv_bias)
        if self.sharing > 1:
            self.qkv.parts = (self.width, shared, shared)
        self.query_norm, self.key_norm = query_norm, key_norm
        self.output = Linear(self.width, hidden_size, bias=output_bias)

    @property
    def num_kv_heads(self) -> int:
        """K, the number of heads of keys and values."""
        return self.num_heads // self.sharing

    @property
    def usual(self) -> bool:
        """Whether this is attention as in 2017, with nothing of what families vary."""
        added = (self.scale, self.window, self.rope, self.query_norm, self.key_norm)
        own = type(self) is SelfAttention and self.sharing == 1
        return own and all(x is None for x in (*added, self._score_bias[0]))

    def pass_bias(self, layout: Layout) -> ScoreBias | None:
        """Give what is added to the scores; asked once a pass.

        Args:
            layout: the sequences of the keys; in a pass with a cache, of the new tokens alone.
        """
        return self._score_bias[0]

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        select: Selection | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
        turns: Turns | None = None,
    ) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`, or to `[R, hidden]` for the selected queries.

        The arguments are as for `TransformerLayer`. After the first pass of `cache`, queries see
        all that it holds, or what the window leaves.
        """
        # Queries only for the selected rows, keys and values for all.
        heads, shared = self.num_heads, self.num_kv_heads
        if select is None:
            q, k, v = self.heads(self.qkv(x), turns)
        else:
            width = self.width
            (q,) = self._heads(self.qkv.part(x[select.rows], slice(width)), heads)
            k, v = self._heads(self.qkv.part(x, slice(width, None)), shared, shared)
            q, k = self.placed(q, k, turns, select)
        queries = layout if select is None else select.layout
        places = self.places(select, layout, causal=causal)
        mixed = self.mix(q, k, v, queries, layout, causal, cache, layer, places)
        output: Tensor = self.output(mixed)
        return output

    def mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Layout,
        layout: Layout,
        causal: bool,
        cache: KVCache | None,
        layer: int,
        places: Tensor | None = None,
    ) -> Tensor:
        """Attend to the batch itself, or in later passes to the cache; `[Tq, width]`."""
        rule: dict[str, Any] = {"scale": self.scale, "window": self.window}
        rule["score_bias"] = self.pass_bias(layout)
        if cache is not None and cache.stepping:
            kept = cache.append(layer, k, v)
            mixed = attention_step(q, *kept, cache.visible, cache.places, **rule)
        elif cache is not None and cache.new is not None:
            kept = cache.append(layer, k, v)
            mixed = attention_after(q, *kept, queries, cache.lengths, **rule)
        else:
            if cache is not None:
                cache.layers[layer].fill(k, v, layout)
            rule["dropout_p"] = self.dropout if self.training else 0.0
            mixed = attention(q, k, v, queries, layout, causal=causal, places=places, **rule)
        return mixed.flatten(1)

    def maps(
        self, x: Tensor, layout: Layout, *, causal: bool = False, turns: Turns | None = None
    ) -> list[Tensor]:
        """The attention weights of each sequence, `[H, length, length]`, without dropout."""
        q, k, _ = self.heads(self.qkv(x), turns)
        rule: dict[str, Any] = {"window": self.window, "score_bias": self.pass_bias(layout)}
        return attention_maps(q, k, layout, layout, causal=causal, scale=self.scale, **rule)

    def heads(self, projected: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """Split what `qkv` gives into queries and keys, normed and turned, and values.

        Args:
            projected: `[T, (H + 2 K) * D]`.
            turns: the angles, for attention that has a `rope`.

        Returns:
            `[T, H, D]`, `[T, K, D]` and `[T, K, D]`.
        """
        heads, shared = self.num_heads, self.num_kv_heads
        if self.rope is None or turns is None or self._normed:
            q, k, v = self._heads(projected, heads, shared, shared)
            return *self.placed(q, k, turns), v
        # Queries and keys lie side by side, and are turned as if they were more heads of one kind.
        both, v = self._heads(projected, heads + shared, shared)
        q, k = torch.split(turns.turn(both), [heads, shared], 1)
        return q, k, v

    @property
    def _normed(self) -> bool:
        return self.query_norm is not None or self.key_norm is not None

    def _heads(self, projected: Tensor, *counts: int) -> tuple[Tensor, ...]:
        """Split `[T, sum(counts) * D]` into tensors `[T, count, D]`."""
        heads = projected.view(len(projected), sum(counts), self.width // self.num_heads)
        return torch.split(heads, list(counts), 1)

    def placed(
        self, q: Tensor, k: Tensor, turns: Turns | None, select: Selection | None = None
    ) -> tuple[Tensor, Tensor]:
        """Norm queries and keys, and turn them to their positions."""
        q = q if self.query_norm is None else self.query_norm(q)
        k = k if self.key_norm is None else self.key_norm(k)
        if self.rope is None:
            return q, k
        if turns is None:
            raise ValueError("attention with rotary positions needs the angles of the batch")
        return (turns if select is None else turns.at(select.rows)).turn(q), turns.turn(k)

    @property
    def bare_scores(self) -> bool:
        """Whether nothing is added to the scores."""
        return type(self) is SelfAttention and self._score_bias[0] is None

    def places(self, select: Selection | None, layout: Layout, *, causal: bool) -> Tensor | None:
        """The number of each selected row in its sequence, `[R]`; None where it does not matter.

        A causal model selects the last token of each sequence, which sees all others. Without a
        window or an addition to the scores it does not matter where a query stands.
        """
        if select is None or causal or (self.window is None and self.bare_scores):
            return None
        # By the lengths on the host: nothing waits for a GPU, and the meta device has no values.
        counts = torch.tensor(select.layout.lengths, device="cpu")
        starts = torch.tensor(layout.starts, device="cpu").repeat_interleave(counts)
        return select.rows - starts.to(select.rows.device)


def heads_of(projected: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Split `[T, parts * hidden]` into `parts` tensors `[T, H, D]`."""
    rows, width = projected.shape
    return projected.view(rows, parts, num_heads, width // (parts * num_heads)).unbind(1)


@dataclass(frozen=True)
class EncoderOutput:
    """The encoder's last hidden states, which a decoder attends to."""

    hidden: Tensor  # [Ts, hidden]; rows past `layout.total` are padding
    layout: Layout  # of the sources, one for each target


class CrossAttention(nn.Module):
    """Attention of each target to its source ("encoder-decoder attention", section 3.2.3).

    Key and value share one matrix `[2 * H * D, hidden]`, in this order.

    Args:
        hidden_size: width of the residual stream.
        num_heads: H.
        dropout: on the attention weights.
        head_dim: D; default: hidden_size / H.
        bias: whether the linear maps have one.
        scale: factor on the products of queries and keys; default: 1 / sqrt(D).
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        dropout: float,
        *,
        head_dim: int | None = None,
        bias: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        width = num_heads * (hidden_size // num_heads if head_dim is None else head_dim)
        self.num_heads = num_heads
        self.dropout, self.scale = dropout, scale
        self.query = Linear(hidden_size, width, bias=bias)
        self.kv = Linear(hidden_size, 2 * width, bias=bias)
        self.output = Linear(width, hidden_size, bias=bias)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        source: EncoderOutput | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Map the targets' `[T, hidden]` to `[T, hidden]`, as in `TransformerLayer`."""
        (q,) = heads_of(self.query(x), 1, self.num_heads)
        if source is None:
            if cache is None or cache.source is None:
                raise ValueError("cross-attention needs a source, or a cache that has read one")
            mixed = cache.source.attend(layer, q, layout, self.scale)
        else:
            k, v = heads_of(self.kv(source.hidden), 2, self.num_heads)
            if cache is not None and cache.source is not None:
                cache.source.fill(layer, k, v, source.layout)
            rule: dict[str, Any] = {"dropout_p": self.dropout if self.training else 0.0}
            mixed = attention(q, k, v, layout, source.layout, scale=self.scale, **rule)
        projected: Tensor = self.output(mixed.flatten(1))
        return projected

    def maps(self, x: Tensor, layout: Layout, source: EncoderOutput) -> list[Tensor]:
        """The attention weights of each target, `[H, target, source]`, without dropout."""
        (q,) = heads_of(self.query(x), 1, self.num_heads)
        k, _ = heads_of(self.kv(source.hidden), 2, self.num_heads)
        return attention_maps(q, k, layout, source.layout, scale=self.scale)


class FeedForward(nn.Module):
    """Two linear maps with an activation between (Vaswani et al. 2017, equation 2).

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width between the maps.
        activation: a name in `ACTIVATIONS`.
        bias: whether the maps have one.
        dropout: on what goes into the second map.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.up.keep_bf16 = True
        self.dropout = Dropout(dropout) if dropout else None
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`."""
        inner = self.activation(self.up(x))
        down: Tensor = self.down(inner if self.dropout is None else self.dropout(inner))
        return down


class GatedFeedForward(nn.Module):
    """A gate beside the first map: down(activation(gate(x)) * up(x)) (Shazeer 2020, equation 5).

    SwiGLU with the activation `silu`, GeGLU with `gelu`. Gate and up share one matrix
    `[2 * intermediate, hidden]`, in this order.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width between the maps.
        activation: a name in `ACTIVATIONS`.
        bias: whether the maps have one.
        dropout: on what goes into the last map.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        activation: str,
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate_up = Linear(hidden_size, 2 * intermediate_size, bias=bias)
        self.gate_up.keep_bf16 = True
        self.dropout = Dropout(dropout) if dropout else None
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`."""
        inner = ops.gated(self.gate_up(x), self.activation, DERIVATIVES.get(self.activation))
        down: Tensor = self.down(inner if self.dropout is None else self.dropout(inner))
        return down


class TransformerLayer(nn.Module):
    """Self-attention, attention to a source with `cross`, and a feed-forward block.

    Args:
        hidden_size: width of the residual stream.
        num_heads: number of attention heads.
        intermediate_size: width between the two linear maps of the feed-forward block.
        activation: a name in `ACTIVATIONS`.
        dropout: on everything that is added to the residual stream.
        attention_dropout: on the attention weights.
        eps: of the LayerNorms.
        dropout_attended: on the attention's output; default: `dropout`.
        causal: whether a token sees only those before it.
        cross: whether the layer also attends to a source.
        attention: takes the place of the usual self-attention.
        feed_forward: takes the place of the usual feed-forward block.
        cross_attention: takes the place of the usual attention to a source.
        norm: makes a norm of the given width; default: LayerNorm.
    """

    norm_first: ClassVar[bool]

    attention: SelfAttention
    attention_norm: nn.Module
    feed_forward: nn.Module
    feed_forward_norm: nn.Module

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        activation: str,
        *,
        dropout: float,
        attention_dropout: float,
        eps: float,
        dropout_attended: float | None = None,
        causal: bool = False,
        cross: bool = False,
        attention: SelfAttention | None = None,
        feed_forward: nn.Module | None = None,
        cross_attention: CrossAttention | None = None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        norm = partial(nn.LayerNorm, eps=eps) if norm is None else norm

        def add(name: str, block: nn.Module) -> None:
            parts = [(name, block), (f"{name}_norm", norm(hidden_size))]
            # In the order they run: an optimizer's saved state goes by the order of parameters.
            for key, part in reversed(parts) if self.norm_first else parts:
                self.add_module(key, part)

        #: Norms of what a block gives, before it is added to the residual stream: Gemma 3 has them.
        self.attention_output_norm: nn.Module | None = None
        self.feed_forward_output_norm: nn.Module | None = None
        self.causal = causal
        sizes = (hidden_size, num_heads, attention_dropout)
        add("attention", attention or SelfAttention(*sizes))
        self.cross: CrossAttention | None = None
        if cross:
            self.cross = cross_attention or CrossAttention(*sizes)
            self.cross_norm = norm(hidden_size)
        usual = (hidden_size, intermediate_size, activation)
        add("feed_forward", feed_forward or FeedForward(*usual))
        self.dropout_attended = Dropout(dropout if dropout_attended is None else dropout_attended)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        select: Selection | None = None,
        source: EncoderOutput | None = None,
        cache: KVCache | None = None,
        index: int = 0,
        turns: Turns | None = None,
    ) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`, or to `[R, hidden]` for the selected rows.

        Args:
            x: hidden states.
            layout: their sequences.
            select: the rows to compute; default: all.
            source: what the layer attends to with `cross`; None if the cache has read it.
            cache: for keys and values.
            index: the number of this layer in the cache.
            turns: the angles of rotary positions, for attention that has a `rope`.
        """
        # Of the selected rows only: later blocks do not look at other rows.
        attended = self.attention(
            self._before(self.attention_norm, x),
            *(layout, select, self.causal, cache, index, turns),
        )
        if self.attention_output_norm is not None:
            attended = self.attention_output_norm(attended)
        kept = x if select is None else x[select.rows]
        x = self._after(self.attention_norm, kept + self.dropout_attended(attended))
        # Each target looks at its source.
        if self.cross is not None:
            rows = layout if select is None else select.layout
            seen = self.cross(self._before(self.cross_norm, x), rows, source, cache, index)
            x = self._after(self.cross_norm, x + self.dropout_attended(seen))
        # No name holds the block's output: it would live, and take memory, until the norm is done.
        norm, output_norm = self.feed_forward_norm, self.feed_forward_output_norm
        if output_norm is None:
            x = x + self.dropout(self.feed_forward(self._before(norm, x)))
        else:
            x = x + self.dropout(output_norm(self.feed_forward(self._before(norm, x))))
        return self._after(norm, x)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = norm(x) if self.norm_first else x
        return normed

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = x if self.norm_first else norm(x)
        return normed

    @property
    def usual(self) -> bool:
        """Whether the layer consists of the usual parts: what goes around its modules asks."""
        norms = [self.attention_norm, self.feed_forward_norm]
        norms += [] if self.cross is None else [self.cross_norm]
        plain = all(isinstance(norm, nn.LayerNorm) and norm.bias is not None for norm in norms)
        blocks = self.attention.usual and type(self.feed_forward) is FeedForward
        return plain and blocks and (self.cross is None or self.cross.scale is None)

    def attention_maps(self, x: Tensor, layout: Layout, turns: Turns | None = None) -> list[Tensor]:
        """The attention weights of each sequence, `[H, length, length]`."""
        x = self._before(self.attention_norm, x)
        return self.attention.maps(x, layout, causal=self.causal, turns=turns)


class PostNormLayer(TransformerLayer):
    """A layer of the original Transformer and BERT: x = LayerNorm(x + Dropout(Block(x)))."""

    norm_first = False


class PreNormLayer(TransformerLayer):
    """A layer of GPT-2: x = x + Dropout(Block(LayerNorm(x)))."""

    norm_first = True
