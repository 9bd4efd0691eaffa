"""What a decoder keeps between tokens: the keys and values of all that it has read.

Computing token t + 1 of a Transformer needs the keys and values of tokens 0 .. t, in every layer,
and nothing else of them: kept, each new token costs one row instead of t + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import Layout, PackedBatch

#: Room grows by this many tokens a sequence; short ones, of which there may be many, have less.
BLOCK = 128
SMALL_BLOCK = 16


@dataclass(frozen=True)
class NewTokens:
    """Where several new tokens of each sequence go.

    Attributes:
        rows: `[T]`: which sequence each is of.
        columns: `[T]`: where in that sequence it is.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, before: Sequence[int], more: Sequence[int], device: torch.device) -> NewTokens:
        """So many tokens that were read of each sequence, and so many that are new."""
        rows = torch.repeat_interleave(torch.tensor(more))
        columns = [torch.arange(old, old + new) for old, new in zip(before, more, strict=True)]
        return cls(rows.to(device), torch.cat(columns).to(device))


class LayerCache:
    """Keys and values of one layer: `[B, H, capacity, D]` each, valid up to each row's length."""

    keys: Tensor
    values: Tensor

    def fill(self, k: Tensor, v: Tensor, layout: Layout, capacity: int | None = None) -> None:
        """Take in the packed `[T, H, D]` keys and values of whole sequences.

        There is room for `capacity` tokens of each; default: for some more than there are.
        """
        capacity = _capacity(layout.max_seqlen) if capacity is None else capacity
        shape = (len(layout.lengths), k.shape[1], capacity, k.shape[2])
        # Zeros: what is masked is still multiplied by 0, and 0 times whatever lay there may be NaN.
        self.keys, self.values = k.new_zeros(shape), v.new_zeros(shape)
        for i, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            self.keys[i, :, :length] = k[start : start + length].transpose(0, 1)
            self.values[i, :, :length] = v[start : start + length].transpose(0, 1)

    def append(self, k: Tensor, v: Tensor, lengths: Sequence[int]) -> None:
        """Take in one token a sequence, `[B, H, D]`; `lengths` counts it already."""
        if max(lengths) > self.keys.shape[2]:
            self.resize(_capacity(max(lengths)))
        count, last = len(lengths), lengths[0] - 1
        if min(lengths) == max(lengths):
            self.keys[:, :, last], self.values[:, :, last] = k[:count], v[:count]
            return
        rows = torch.arange(count, device=k.device)
        columns = torch.tensor(lengths, device=k.device) - 1
        self.keys[rows, :, columns] = k[:count]
        self.values[rows, :, columns] = v[:count]

    def write(self, k: Tensor, v: Tensor, new: NewTokens, longest: int) -> None:
        """Take in the packed `[T, H, D]` of new tokens, after which a sequence has `longest`."""
        if longest > self.keys.shape[2]:
            self.resize(_capacity(longest))
        count = len(new.rows)
        self.keys[new.rows, :, new.columns] = k[:count]
        self.values[new.rows, :, new.columns] = v[:count]

    def resize(self, capacity: int) -> None:
        """Give each sequence room for so many tokens; what is beyond is lost."""
        self.keys, self.values = (_resized(x, capacity) for x in (self.keys, self.values))

    def select(self, rows: Tensor, capacity: int) -> None:
        """As `KVCache.select`."""
        self.keys = self.keys[:, :, :capacity].index_select(0, rows)
        self.values = self.values[:, :, :capacity].index_select(0, rows)

    def extend(self, other: LayerCache) -> None:
        """As `KVCache.extend`."""
        capacity = max(self.keys.shape[2], other.keys.shape[2])
        self.keys = torch.cat([_resized(x.keys, capacity) for x in (self, other)])
        self.values = torch.cat([_resized(x.values, capacity) for x in (self, other)])


class SourceCache:
    """Keys and values of the sources that sequences look at: computed once, never added to.

    Several sequences may share a source, as the hypotheses of a beam do: it is kept once, and
    reordering them moves nothing.

    Attributes:
        owners: for each sequence, which source is its own.
    """

    def __init__(self, num_layers: int, count: int) -> None:
        self.owners = list(range(count))
        self._lengths = [0] * count
        self._layers = [LayerCache() for _ in range(num_layers)]
        self._visible: Tensor | None = None

    def fill(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Take in the packed `[Ts, H, D]` keys and values of a layer."""
        self._lengths = list(layout.lengths)
        self._visible = _first_of_each(self._lengths, k.device)
        self._layers[layer].fill(k, v, layout, layout.max_seqlen)

    def attend(self, layer: int, q: Tensor, queries: Layout) -> Tensor:
        """What each query sees of its sequence's source.

        Args:
            layer: whose keys and values.
            q: `[T, H, D]`, packed; further rows are the caller's padding and come back as zeros.
            queries: how many of `q` are of each sequence.

        Returns:
            `[T, H, D]`.
        """
        entry, sources, real = self._layers[layer], len(self._lengths), q[: queries.total]
        each = queries.total // max(sources, 1)
        owner = [o for o, n in zip(self.owners, queries.lengths, strict=True) for _ in range(n)]
        if owner == [source for source in range(sources) for _ in range(each)]:
            # As many queries of each source, in its order: those of a source share its keys.
            asking = real.view(sources, each, *q.shape[1:]).transpose(1, 2)
            keys, values, visible = entry.keys, entry.values, self._visible
        else:
            rows = torch.tensor(owner, dtype=torch.int64, device=q.device)
            asking = real.unsqueeze(2)
            keys, values = entry.keys[rows], entry.values[rows]
            visible = None if self._visible is None else self._visible[rows]
        mixed = F.scaled_dot_product_attention(asking, keys, values, attn_mask=visible)
        mixed = mixed.transpose(1, 2).reshape(real.shape)
        return F.pad(mixed, (0, 0, 0, 0, 0, len(q) - len(real)))

    def select(self, rows: Sequence[int]) -> None:
        """As `KVCache.select`; sources that nobody looks at any more are dropped."""
        self.owners = [self.owners[row] for row in rows]
        used = sorted(set(self.owners))
        if len(used) == len(self._lengths):
            return
        place = {source: i for i, source in enumerate(used)}
        self.owners = [place[source] for source in self.owners]
        self._lengths = [self._lengths[source] for source in used]
        index = torch.tensor(used, dtype=torch.int64, device=self._layers[0].keys.device)
        for layer in self._layers:
            layer.select(index, max(self._lengths, default=0))
        self._visible = _first_of_each(self._lengths, index.device)

    def extend(self, other: SourceCache) -> None:
        """As `KVCache.extend`."""
        self.owners += [len(self._lengths) + owner for owner in other.owners]
        self._lengths = self._lengths + other._lengths
        for layer, more in zip(self._layers, other._layers, strict=True):
            layer.extend(more)
        self._visible = _first_of_each(self._lengths, self._layers[0].keys.device)


def _first_of_each(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """`[B, 1, 1, longest]` True for the first so many of each; None where that is all."""
    if not lengths or min(lengths) == max(lengths):
        return None
    columns = torch.arange(max(lengths))
    return (columns < torch.tensor(lengths)[:, None])[:, None, None].to(device)


class KVCache:
    """The state of a decoder that reads B sequences of any lengths, without padding tokens.

    Attributes:
        lengths: tokens read of each sequence, on the host.
        source: of a decoder that looks at a source besides: what it has of it.
        layers: one `LayerCache` a layer.
        visible: during a step, `[B, 1, 1, longest]` True where a key is of the sequence; None where
            all are.
        stepping: whether the pass under way appends one token a sequence.
        new: where the pass under way writes, if it has several tokens a sequence; else None. A pass
            that neither steps nor has these is the first one, which fills.
    """

    def __init__(self, num_layers: int, source: SourceCache | None = None) -> None:
        self.lengths: list[int] = []
        self.source = source
        self.layers = [LayerCache() for _ in range(num_layers)]
        self.visible: Tensor | None = None
        self.stepping = False
        self.new: NewTokens | None = None

    @property
    def count(self) -> int:
        """B."""
        return len(self.lengths)

    def advance(self, tokens: Tensor) -> PackedBatch:
        """What to read in a pass with one token a sequence, `[B]`; makes room for it."""
        device = tokens.device
        positions = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self.stepping, self.new = True, None
        self.visible = None
        if min(self.lengths) != max(self.lengths):
            columns = torch.arange(max(self.lengths), device=device)
            self.visible = (columns <= positions[:, None])[:, None, None]
        return PackedBatch(tokens, Layout.of([1] * len(tokens), device), positions)

    def lengthen(self, more: Sequence[Sequence[int]], device: torch.device) -> PackedBatch:
        """What to read in a pass with several tokens a sequence; makes room for them."""
        batch = PackedBatch.of(more).to(device)
        counts = batch.layout.lengths
        self.stepping, self.new = False, NewTokens.of(self.lengths, counts, device)
        self.lengths = [old + count for old, count in zip(self.lengths, counts, strict=True)]
        return PackedBatch(batch.tokens, batch.layout, self.new.columns)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in a layer's keys and values; gives all it has, `[B, H, longest, D]`."""
        entry, longest = self.layers[layer], max(self.lengths)
        if self.new is None:
            entry.append(k, v, self.lengths)
        else:
            entry.write(k, v, self.new, longest)
        return entry.keys[:, :, :longest], entry.values[:, :, :longest]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; one that is named twice is forked."""
        rows = list(rows)
        if rows == list(range(len(self.lengths))):
            return
        self.lengths = [self.lengths[row] for row in rows]
        capacity = _capacity(max(self.lengths, default=0))
        index = torch.tensor(rows, dtype=torch.int64, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.select(index, capacity)
        if self.source is not None:
            self.source.select(rows)

    def extend(self, other: KVCache) -> None:
        """Take in the sequences of another cache, after one's own."""
        self.lengths = self.lengths + other.lengths
        if self.source is not None and other.source is not None:
            self.source.extend(other.source)
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.extend(more)


def _capacity(length: int) -> int:
    """Room for these tokens and the next."""
    block = BLOCK if length >= BLOCK else SMALL_BLOCK
    return (length // block + 1) * block


def _resized(x: Tensor, capacity: int) -> Tensor:
    if x.shape[2] == capacity:
        return x
    kept = min(capacity, x.shape[2])
    resized = x.new_zeros((*x.shape[:2], capacity, x.shape[3]))
    resized[:, :, :kept] = x[:, :, :kept]
    return resized
