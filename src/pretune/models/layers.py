"""The building blocks of all Transformers here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.data.batch import Layout, Selection
from pretune.models import ops
from pretune.models.attention import attention, attention_after, attention_maps, attention_step
from pretune.models.kv_cache import KVCache
from pretune.models.packed import PackedWeights, active


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
        with torch.no_grad():
            table = torch.cat([self.weight, sample_rows(self.weight, added)])
        grown = Embedding(1, table.shape[1])
        grown.num_embeddings = len(table)
        grown.weight = nn.Parameter(table, requires_grad=self.weight.requires_grad)
        return grown


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

    Query, key and value share one matrix `[3 * hidden, hidden]`, in this order, for one product
    instead of three.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.width = hidden_size  # of all heads; less where heads were removed
        self.dropout = dropout
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.output = Linear(hidden_size, hidden_size)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        select: Selection | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`, or to `[R, hidden]` for the selected queries.

        The arguments are as for `TransformerLayer`. After the first pass of `cache`, queries see
        all that it holds.
        """
        # Queries only for the selected rows, keys and values for all.
        if select is None:
            q, k, v = heads_of(self.qkv(x), 3, self.num_heads)
        else:
            width = self.width
            (q,) = heads_of(self.qkv.part(x[select.rows], slice(width)), 1, self.num_heads)
            k, v = heads_of(self.qkv.part(x, slice(width, None)), 2, self.num_heads)
        queries = layout if select is None else select.layout
        mixed: Tensor = self.output(self.mix(q, k, v, queries, layout, causal, cache, layer))
        return mixed

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
    ) -> Tensor:
        """Attend to the batch itself, or in later passes to the cache; `[Tq, hidden]`."""
        if cache is not None and cache.stepping:
            mixed = attention_step(q, *cache.append(layer, k, v), cache.visible)
        elif cache is not None and cache.new is not None:
            mixed = attention_after(q, *cache.append(layer, k, v), queries, cache.lengths)
        else:
            if cache is not None:
                cache.layers[layer].fill(k, v, layout)
            dropout = self.dropout if self.training else 0.0
            mixed = attention(q, k, v, queries, layout, causal=causal, dropout_p=dropout)
        return mixed.flatten(1)

    def maps(self, x: Tensor, layout: Layout, *, causal: bool = False) -> list[Tensor]:
        """The attention weights of each sequence, `[H, length, length]`, without dropout."""
        q, k, _ = heads_of(self.qkv(x), 3, self.num_heads)
        return attention_maps(q, k, layout, layout, causal=causal)


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

    Key and value share one matrix `[2 * hidden, hidden]`, in this order.
    """

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = Linear(hidden_size, hidden_size)
        self.kv = Linear(hidden_size, 2 * hidden_size)
        self.output = Linear(hidden_size, hidden_size)

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
            mixed = cache.source.attend(layer, q, layout)
        else:
            k, v = heads_of(self.kv(source.hidden), 2, self.num_heads)
            if cache is not None and cache.source is not None:
                cache.source.fill(layer, k, v, source.layout)
            dropout = self.dropout if self.training else 0.0
            mixed = attention(q, k, v, layout, source.layout, dropout_p=dropout)
        projected: Tensor = self.output(mixed.flatten(1))
        return projected

    def maps(self, x: Tensor, layout: Layout, source: EncoderOutput) -> list[Tensor]:
        """The attention weights of each target, `[H, target, source]`, without dropout."""
        (q,) = heads_of(self.query(x), 1, self.num_heads)
        k, _ = heads_of(self.kv(source.hidden), 2, self.num_heads)
        return attention_maps(q, k, layout, source.layout)


class FeedForward(nn.Module):
    """Two linear maps with an activation between (Vaswani et al. 2017, equation 2)."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(hidden_size, intermediate_size)
        self.up.keep_bf16 = True
        self.down = Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`."""
        down: Tensor = self.down(self.activation(self.up(x)))
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
    """

    norm_first: ClassVar[bool]

    attention: SelfAttention
    attention_norm: nn.LayerNorm
    feed_forward: FeedForward
    feed_forward_norm: nn.LayerNorm

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
    ) -> None:
        super().__init__()

        def add(name: str, block: nn.Module) -> None:
            parts = [(name, block), (f"{name}_norm", nn.LayerNorm(hidden_size, eps=eps))]
            # In the order they run: an optimizer's saved state goes by the order of parameters.
            for key, part in reversed(parts) if self.norm_first else parts:
                self.add_module(key, part)

        self.causal = causal
        add("attention", SelfAttention(hidden_size, num_heads, attention_dropout))
        self.cross: CrossAttention | None = None
        if cross:
            self.cross = CrossAttention(hidden_size, num_heads, attention_dropout)
            self.cross_norm = nn.LayerNorm(hidden_size, eps=eps)
        add("feed_forward", FeedForward(hidden_size, intermediate_size, activation))
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
    ) -> Tensor:
        """Map `[T, hidden]` to `[T, hidden]`, or to `[R, hidden]` for the selected rows.

        Args:
            x: hidden states.
            layout: their sequences.
            select: the rows to compute; default: all.
            source: what the layer attends to with `cross`; None if the cache has read it.
            cache: for keys and values.
            index: the number of this layer in the cache.
        """
        # Of the selected rows only: later blocks do not look at other rows.
        attended = self.attention(
            self._before(self.attention_norm, x),
            *(layout, select, self.causal, cache, index),
        )
        kept = x if select is None else x[select.rows]
        x = self._after(self.attention_norm, kept + self.dropout_attended(attended))
        # Each target looks at its source.
        if self.cross is not None:
            rows = layout if select is None else select.layout
            seen = self.cross(self._before(self.cross_norm, x), rows, source, cache, index)
            x = self._after(self.cross_norm, x + self.dropout_attended(seen))
        # No name holds the block's output: it would live, and take memory, until the norm is done.
        norm = self.feed_forward_norm
        x = x + self.dropout(self.feed_forward(self._before(norm, x)))
        return self._after(norm, x)

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = norm(x) if self.norm_first else x
        return normed

    def _after(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = x if self.norm_first else norm(x)
        return normed

    def attention_maps(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """The attention weights of each sequence, `[H, length, length]`."""
        return self.attention.maps(self._before(self.attention_norm, x), layout, causal=self.causal)


class PostNormLayer(TransformerLayer):
    """A layer of the original Transformer and BERT: x = LayerNorm(x + Dropout(Block(x)))."""

    norm_first = False


class PreNormLayer(TransformerLayer):
    """A layer of GPT-2: x = x + Dropout(Block(LayerNorm(x)))."""

    norm_first = True
