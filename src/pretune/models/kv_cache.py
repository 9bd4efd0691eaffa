"""The keys and values that a decoder keeps of the tokens it has read.

Computing token t + 1 of a Transformer needs only the keys and values of tokens 0 .. t in every
layer. With a cache, each new token costs one row instead of t + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import Layout, PackedBatch

#: A cache grows by this many tokens for each sequence, and by fewer while sequences are short.
BLOCK = 128
SMALL_BLOCK = 16


@dataclass(frozen=True)
class NewTokens:
    """Where several new tokens of each sequence go."""

    rows: Tensor  # `[T]`: the sequence of each token
    columns: Tensor  # `[T]`: its position in the sequence

    @classmethod
    def of(cls, before: Sequence[int], more: Sequence[int], device: torch.device) -> NewTokens:
        """Place `more` new tokens of each sequence after the `before` tokens already read."""
        rows = torch.repeat_interleave(torch.tensor(more))
        columns = [torch.arange(old, old + new) for old, new in zip(before, more, strict=True)]
        return cls(rows.to(device), torch.cat(columns).to(device))


class LayerCache:
    """Keys and values of one layer: `[B, H, capacity, D]` each, valid up to each row's length.

    They are the first rows of tensors that may have more: places for sequences that join, so that
    the others need not be copied then.
    """

    keys: Tensor
    values: Tensor
    _places: tuple[Tensor, Tensor]  # `[R, H, capacity, D]` each, with R at least B

    def fill(self, k: Tensor, v: Tensor, layout: Layout, capacity: int | None = None) -> None:
        """Store the packed `[T, H, D]` keys and values of whole sequences.

        Each gets room for `capacity` tokens; by default, for some more than the longest has.
        """
        capacity = _capacity(layout.max_seqlen) if capacity is None else capacity
        shape = (len(layout.lengths), k.shape[1], capacity, k.shape[2])
        # Zeros, as masked values are multiplied by 0, and 0 times uninitialised memory may be NaN.
        self._show((k.new_zeros(shape), v.new_zeros(shape)), len(layout.lengths))
        for i, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
            self.keys[i, :, :length] = k[start : start + length].transpose(0, 1)
            self.values[i, :, :length] = v[start : start + length].transpose(0, 1)

    def append(self, k: Tensor, v: Tensor, length: int) -> None:
        """Store one token of each sequence, `[B, H, D]`; all have this length then."""
        self._make_room(length)
        count, last = len(self.keys), length - 1
        self.keys[:, :, last], self.values[:, :, last] = k[:count], v[:count]

    def write(self, k: Tensor, v: Tensor, new: NewTokens, longest: int) -> None:
        """Store packed new tokens, `[T, H, D]`; the longest sequence then has `longest` tokens."""
        self._make_room(longest)
        count = len(new.rows)
        self.keys[new.rows, :, new.columns] = k[:count]
        self.values[new.rows, :, new.columns] = v[:count]

    def select(self, rows: Tensor, capacity: int) -> None:
        """Keep these sequences, with at most `capacity` tokens each, and no free places."""
        keys, values = self.keys[:, :, :capacity], self.values[:, :, :capacity]
        self._show((keys.index_select(0, rows), values.index_select(0, rows)), len(rows))

    def move(self, moved: Mapping[int, int], count: int) -> None:
        """Put sequences into the places of others, in place, and keep the first `count`."""
        for place, row in moved.items():
            self.keys[place], self.values[place] = self.keys[row], self.values[row]
        self._show(self._places, count)

    def extend(self, other: LayerCache) -> None:
        """Append the sequences of another cache."""
        before, count, length = len(self.keys), len(self.keys) + len(other.keys), other.capacity
        places = len(self._places[0])
        if count > places:
            places = max(count, before * 3 // 2)  # half as many again: copies become rare
        self._resize(places, max(self.capacity, length))
        self._show(self._places, count)
        for own, new in ((self.keys, other.keys), (self.values, other.values)):
            own[before:, :, :length] = new
            own[before:, :, length:] = 0  # nothing stays of a sequence that was there before

    @property
    def capacity(self) -> int:
        """The largest number of tokens of a sequence."""
        return self.keys.shape[2]

    def _make_room(self, longest: int) -> None:
        if longest > self.capacity:
            self._resize(len(self._places[0]), _capacity(longest))

    def _resize(self, places: int, capacity: int) -> None:
        """Copy the sequences to tensors with more places, or room for more tokens."""
        count, before = len(self.keys), self.capacity
        if (places, capacity) == (len(self._places[0]), before):
            return
        shape = (places, self.keys.shape[1], capacity, self.keys.shape[3])
        larger = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        larger[0][:count, :, :before] = self.keys
        larger[1][:count, :, :before] = self.values
        self._show(larger, count)

    def _show(self, places: tuple[Tensor, Tensor], count: int) -> None:
        """Let the first `count` rows of these tensors be the sequences."""
        self._places = places
        self.keys, self.values = places[0][:count], places[1][:count]


class SourceCache:
    """Keys and values of the sources that a decoder attends to: computed once, never extended.

    Sequences may share a source, as the hypotheses of a beam do. It is kept once, and reordering
    the sequences moves no data.
    """

    def __init__(self, num_layers: int, count: int) -> None:
        self.owners = list(range(count))  # for each sequence, the number of its source
        self._lengths = [0] * count
        self._layers = [LayerCache() for _ in range(num_layers)]
        self._visible: Tensor | None = None

    def fill(self, layer: int, k: Tensor, v: Tensor, layout: Layout) -> None:
        """Store the packed `[Ts, H, D]` keys and values of a layer."""
        self._lengths = list(layout.lengths)
        self._visible = _first_of_each(self._lengths, k.device)
        self._layers[layer].fill(k, v, layout, layout.max_seqlen)

    def attend(self, layer: int, q: Tensor, queries: Layout, scale: float | None = None) -> Tensor:
        """Attention of each packed query to the source of its sequence, `[T, H, D]` both.

        Rows of `q` past the layout `queries` are padding and come back as zeros. `scale` is as in
        `attention`.
        """
        entry, sources, real = self._layers[layer], len(self._lengths), q[: queries.total]
        longest, visible = max(self._lengths, default=0), self._visible
        keys, values = entry.keys[:, :, :longest], entry.values[:, :, :longest]
        each = queries.total // max(sources, 1)
        owner = [o for o, n in zip(self.owners, queries.lengths, strict=True) for _ in range(n)]
        if owner == [source for source in range(sources) for _ in range(each)]:
            # The same number of queries for each source, in order: a batch without copies of keys.
            asking = real.view(sources, each, *q.shape[1:]).transpose(1, 2)
        else:
            rows = torch.tensor(owner, dtype=torch.int64, device=q.device)
            asking = real.unsqueeze(2)
            keys, values = keys[rows], values[rows]
            visible = None if visible is None else visible[rows]
        mixed = F.scaled_dot_product_attention(asking, keys, values, attn_mask=visible, scale=scale)
        mixed = mixed.transpose(1, 2).reshape(real.shape)
        return F.pad(mixed, (0, 0, 0, 0, 0, len(q) - len(real)))

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, and drop sources that no sequence needs any more."""
        self.owners = [self.owners[row] for row in rows]
        used = list(dict.fromkeys(self.owners))
        if len(used) == len(self._lengths):
            return
        # Number the remaining sources anew, in the order of their sequences.
        place = {source: i for i, source in enumerate(used)}
        self.owners = [place[source] for source in self.owners]
        self._lengths = [self._lengths[source] for source in used]
        _keep(self._layers, used, max(self._lengths, default=0))
        self._visible = _first_of_each(self._lengths, self._layers[0].keys.device)

    def extend(self, other: SourceCache) -> None:
        """Append the sequences of another cache."""
        self.owners += [len(self._lengths) + owner for owner in other.owners]
        self._lengths = self._lengths + other._lengths
        for layer, more in zip(self._layers, other._layers, strict=True):
            layer.extend(more)
        self._visible = _first_of_each(self._lengths, self._layers[0].keys.device)


def _first_of_each(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """A mask `[B, 1, 1, longest]`, True up to each length; None if all lengths are equal."""
    if not lengths or min(lengths) == max(lengths):
        return None
    columns = torch.arange(max(lengths))
    return (columns < torch.tensor(lengths)[:, None])[:, None, None].to(device)


class KVCache:
    """The state of a decoder that reads B sequences of any lengths, without padding tokens.

    The first pass fills the cache with whole sequences. Later passes begin with `advance` (one
    token each) or `lengthen` (several).

    Attributes:
        visible: during a step, `[B, 1, 1, longest]` True where a sequence has a key; None if all
            have the same length.
        places: during a step, `[B]` int64, the number of each new token in its sequence.
        new: where the current pass writes; None where it adds a token to sequences of one length.
    """

    def __init__(self, num_layers: int, source: SourceCache | None = None) -> None:
        self.lengths: list[int] = []  # number of tokens read of each sequence, on the host
        self.source = source  # keys and values of the sources, for a decoder that attends to some
        self.layers = [LayerCache() for _ in range(num_layers)]  # a `LayerCache` for each layer
        self.visible: Tensor | None = None
        self.places: Tensor | None = None
        self.stepping = False  # whether the current pass appends one token to each sequence
        self.new: NewTokens | None = None

    @property
    def count(self) -> int:
        """B."""
        return len(self.lengths)

    def advance(self, tokens: Tensor) -> PackedBatch:
        """Begin a pass with one token of each sequence, `[B]`, and return its batch."""
        device = tokens.device
        positions = torch.tensor(self.lengths, device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self.stepping, self.new = True, None
        self.places = positions
        # Sequences of other lengths write to other columns, and see other ones.
        self.visible = None
        if min(self.lengths) != max(self.lengths):
            self.new = NewTokens(torch.arange(len(tokens), device=device), positions)
            columns = torch.arange(max(self.lengths), device=device)
            self.visible = (columns <= positions[:, None])[:, None, None]
        return PackedBatch(tokens, Layout.of([1] * len(tokens), device), positions)

    def lengthen(self, more: Sequence[Sequence[int]], device: torch.device) -> PackedBatch:
        """Begin a pass with several tokens of each sequence, and return its batch."""
        batch = PackedBatch.of(more).to(device)
        counts = batch.layout.lengths
        self.stepping, self.new = False, NewTokens.of(self.lengths, counts, device)
        self.lengths = [old + count for old, count in zip(self.lengths, counts, strict=True)]
        return PackedBatch(batch.tokens, batch.layout, self.new.columns)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values, and return all it has, `[B, H, longest, D]`."""
        entry, longest = self.layers[layer], max(self.lengths)
        if self.new is None:
            entry.append(k, v, longest)
        else:
            entry.write(k, v, self.new, longest)
        return entry.keys[:, :, :longest], entry.values[:, :, :longest]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; a sequence that is named twice is forked."""
        rows = list(rows)
        if rows == list(range(len(self.lengths))):
            return
        self.lengths = [self.lengths[row] for row in rows]
        _keep(self.layers, rows, _capacity(max(self.lengths, default=0)))
        if self.source is not None:
            self.source.select(rows)

    def extend(self, other: KVCache) -> None:
        """Append the sequences of another cache."""
        self.lengths = self.lengths + other.lengths
        if self.source is not None and other.source is not None:
            self.source.extend(other.source)
        for layer, more in zip(self.layers, other.layers, strict=True):
            layer.extend(more)


def _keep(layers: Sequence[LayerCache], rows: Sequence[int], capacity: int) -> None:
    """Keep these sequences of all layers, in this order; one that is named twice is copied.

    Where most stay in their places, and others come from behind them, only those are copied.
    Otherwise all are, with at most `capacity` tokens each.
    """
    count, before = len(rows), len(layers[0].keys)
    moved = {place: row for place, row in enumerate(rows) if row != place}
    few = 2 * len(moved) <= count and before <= 2 * count
    if few and all(row >= count for row in moved.values()):
        for layer in layers:
            layer.move(moved, count)
    else:
        index = torch.tensor(rows, dtype=torch.int64, device=layers[0].keys.device)
        for layer in layers:
            layer.select(index, capacity)


def _capacity(length: int) -> int:
    """Room for `length` tokens and at least one more."""
    block = BLOCK if length >= BLOCK else SMALL_BLOCK
    return (length // block + 1) * block
