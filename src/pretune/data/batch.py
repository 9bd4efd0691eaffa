"""`PackedBatch`: sequences laid end to end, so that nothing is ever computed for a pad token.

Instead of a `[B, L]` matrix with padding, a batch is one line of `T` tokens, and the places where
each sequence begins (`cu_seqlens`, the convention of FlashAttention's varlen kernels):

    tokens      [CLS] a b [SEP] [CLS] c [SEP]
    positions     0   1 2   3     0   1   2
    cu_seqlens    0               4           7
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pretune.data.arrays import Array, ranges


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed batch begin and end."""

    # Tokens of each sequence, on the host, so that planning never waits for a GPU.
    lengths: tuple[int, ...]
    cu_seqlens: Tensor  # `[B + 1]` int32, on the batch's device: where each sequence begins, and T
    # Plans derived from the lengths (see models/attention.py) live as long as the layout: every
    # layer of a model asks for the same plan.
    plans: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Layout:
        """Make the layout of sequences with these lengths."""
        ends = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(tuple(int(n) for n in lengths), torch.from_numpy(ends).to(device))

    @property
    def max_seqlen(self) -> int:
        """The longest sequence, in tokens."""
        return max(self.lengths, default=0)

    @cached_property
    def total(self) -> int:
        """T, the number of tokens."""
        return sum(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each sequence begins, on the host."""
        return tuple(int(n) for n in np.cumsum([0, *self.lengths[:-1]])) if self.lengths else ()


@dataclass(frozen=True)
class Selection:
    """Some tokens of a packed batch: those whose last hidden state is needed."""

    rows: Tensor  # `[R]` int64: their rows in the batch, ascending
    layout: Layout  # how many of them belong to each sequence


@dataclass(frozen=True)
class PackedBatch:
    """Several sequences without padding. Everything that trains or predicts takes one.

    Attributes:
        tokens: `[T]` int64 token ids.
        layout: where the sequences begin and end.
        positions: `[T]` int64, counted from 0 in each sequence.
        segments: `[T]` int64 segment ids (BERT's token types), or None.
        targets: named tensors: `[B]` or `[B, K]`, by feature, or `[T]`, by token.
        index: `[B]` int64 on the host: the number of each feature, as packing sorts by length.
        choices: the number of sequences of each feature; None where each is one sequence.
    """

    tokens: Tensor
    layout: Layout
    positions: Tensor
    segments: Tensor | None = None
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    choices: tuple[int, ...] | None = None

    @property
    def cu_seqlens(self) -> Tensor:
        """`[B + 1]` int32: where each sequence begins, and T."""
        return self.layout.cu_seqlens

    @property
    def max_seqlen(self) -> int:
        """The longest sequence, in tokens."""
        return self.layout.max_seqlen

    @property
    def num_sequences(self) -> int:
        """Number of sequences: B, or more where features are several sequences."""
        return len(self.layout.lengths)

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return self.layout.total

    @cached_property
    def owners(self) -> Tensor:
        """`[T]` int64: the sequence of each token."""
        lengths = torch.tensor(self.layout.lengths, device=self.tokens.device)
        return torch.repeat_interleave(lengths, output_size=self.num_tokens)

    def positions_after(self, pad: int) -> Tensor:
        """Positions that count from `pad` + 1 and pass over the tokens `pad`, `[T]`.

        Those tokens have the position `pad` themselves, as fairseq numbers them (RoBERTa).
        """
        padding = self.tokens == pad
        # A text hardly ever has the name of the padding token in it; elsewhere, asking would wait.
        if padding.device.type == "cpu" and not bool(padding.any()):
            return self.positions + (pad + 1)
        passed = padding.cumsum(0)
        rows = torch.arange(len(padding), device=padding.device)
        earlier = (passed - padding.long())[rows - self.positions]  # before each sequence
        return (self.positions + (pad + 1) - (passed - earlier)).masked_fill(padding, pad)

    @cached_property
    def first(self) -> Selection:
        """The first token of each sequence (`[CLS]`)."""
        return Selection(self.cu_seqlens[:-1].long(), self._one_each())

    @cached_property
    def last(self) -> Selection:
        """The last token of each sequence."""
        return Selection(self.cu_seqlens[1:].long() - 1, self._one_each())

    def last_but(self, pad: int) -> Selection:
        """The last token of each sequence that is not `pad`; the first where all of them are."""
        padding = self.tokens == pad
        # Texts hardly ever end so; elsewhere than on the CPU, asking would wait.
        if padding.device.type == "cpu" and not bool(padding[self.last.rows].any()):
            return self.last
        places = self.positions.masked_fill(padding, 0)[: self.num_tokens]
        furthest = places.new_zeros(self.num_sequences)
        furthest = furthest.scatter_reduce(0, self.owners, places, "amax")
        return Selection(self.first.rows + furthest, self._one_each())

    def _one_each(self) -> Layout:
        return Layout.of([1] * self.num_sequences, self.cu_seqlens.device)

    @cached_property
    def pairs(self) -> tuple[PackedBatch, PackedBatch]:
        """For features of two sequences each: a batch of the first and one of the second sequences.

        Each batch keeps the targets by token of its own tokens.
        """
        return self._every_other(0), self._every_other(1)

    def _every_other(self, first: int) -> PackedBatch:
        # The rows of every other sequence, from the starts and lengths of those sequences.
        lengths = np.array(self.layout.lengths, dtype=np.int64)
        mine, device = lengths[first::2], self.tokens.device
        starts = (np.cumsum(lengths) - lengths)[first::2]
        rows = torch.from_numpy(ranges(starts, mine)).to(device, non_blocking=True)
        whole = len(self.tokens)
        return PackedBatch(
            tokens=self.tokens[rows],
            layout=Layout.of(mine.tolist(), device),
            positions=self.positions[rows],
            segments=None if self.segments is None else self.segments[rows],
            targets={name: t[rows] for name, t in self.targets.items() if len(t) == whole},
            index=self.index,
        )

    def means(self, values: Tensor) -> Tensor:
        """Average each sequence's rows of values `[T, ...]`, `[B, ...]` in float32."""
        lengths = torch.tensor(self.layout.lengths, device=values.device)
        # Not index_add, whose order of summing differs from run to run on CUDA.
        return torch.segment_reduce(values.float(), "mean", lengths=lengths)

    def where(self, mask: Tensor) -> Selection:
        """The tokens where a mask `[T]` is true; any number in each sequence."""
        # Running counts at the ends of the sequences give the number in each sequence.
        before = np.concatenate([[0], np.cumsum(mask.cpu().numpy())])
        ends = np.cumsum([0, *self.layout.lengths])
        return Selection(mask.nonzero()[:, 0], Layout.of(np.diff(before[ends]), mask.device))

    def to(self, device: torch.device | str) -> PackedBatch:
        """Copy the batch to another device; copies to CUDA overlap with work there."""
        device = torch.device(device)
        if self.tokens.device == device:
            return self

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            tokens=move(self.tokens),
            layout=Layout(self.layout.lengths, move(self.layout.cu_seqlens)),
            positions=move(self.positions),
            segments=None if self.segments is None else move(self.segments),
            targets={name: move(value) for name, value in self.targets.items()},
        )

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int]],
        segments: Sequence[Sequence[int]] | None = None,
        targets: Mapping[str, Sequence[Any]] | None = None,
    ) -> PackedBatch:
        """Pack token ids in the given order: for tests, notebooks and single requests."""
        features = [
            Feature(
                tokens=ids,
                segments=None if segments is None else segments[i],
                targets={name: values[i] for name, values in (targets or {}).items()},
                record=i,
            )
            for i, ids in enumerate(sequences)
        ]
        return FeatureSet.of(features).batch(np.arange(len(features)), sort=False)


@dataclass(frozen=True, slots=True)
class Feature:
    """One training example: mostly one sequence, with its targets."""

    tokens: Sequence[int]  # token ids
    segments: Sequence[int] | None = None  # segment id of each token, or None
    # Named values: a number, a table `[1, K]` of K numbers, or a list with a number for each token.
    targets: Mapping[str, Any] = field(default_factory=dict)
    record: int = 0  # the number (0-based) of its record; long records may give several features
    truncated: bool = False  # whether text was cut to make it fit
    # The lengths in tokens of its sequences, where it has several, such as the answers to choose
    # from, or a source and its target. `tokens` holds them end to end, and they always stay in one
    # batch.
    choices: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that nothing can be learned from."""

    record: int  # its number (0-based)
    why: str  # the reason in a few words, for people


@dataclass(frozen=True, slots=True)
class Repaired:
    """A record that was wrong and is used after a repair."""

    record: int  # its number (0-based)
    why: str  # what was wrong and how it was repaired, in a few words, for people


@dataclass(frozen=True)
class FeatureSet:
    """Many features in a handful of flat arrays: 4 bytes a token, no Python object per feature."""

    tokens: Array  # all token ids, end to end, int32
    starts: Array  # `[N + 1]` int64: where each feature begins, and the number of tokens
    segments: Array | None  # one byte a token, or None
    targets: dict[str, Array]  # arrays by name: `[N]`, `[N, K]`, or as long as `tokens`
    records: Array  # `[N]`: the number of each feature's record
    truncated: int = 0  # number of features whose text was cut
    skipped: tuple[Skipped, ...] = ()  # wrong records that gave no feature
    repaired: tuple[Repaired, ...] = ()  # wrong records that were repaired and gave features
    # The records themselves, where they are needed beside the features.
    rows: Sequence[Mapping[str, Any]] = ()
    # The lengths of each feature's sequences, where features have several.
    choices: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def lengths(self) -> Array:
        """`[N]` int64: tokens of each feature."""
        return np.diff(self.starts)

    @property
    def continues(self) -> Array:
        """`[N]` bool: whether a feature continues the record of the feature before it."""
        return np.append(False, self.records[1:] == self.records[:-1])[: len(self)]

    def record(self, index: int) -> int:
        """The number of a feature's record."""
        return int(self.records[index])

    def sequences(self, which: Array) -> Array:
        """Tokens of each sequence of some features; a feature may have several sequences."""
        if self.choices is None:
            lengths: Array = self.lengths[which]
            return lengths
        return np.fromiter((n for i in which for n in self.choices[i]), dtype=np.int64)

    def fingerprint(self) -> str:
        """A SHA-256 of everything a model can learn from these features, in their order."""
        digest = hashlib.sha256()
        # Names, types and shapes too, so that no two sets look alike when laid end to end.
        arrays = {"tokens": self.tokens, "starts": self.starts, **self.targets}
        if self.segments is not None:
            arrays["segments"] = self.segments
        if self.choices is not None:
            arrays["choices"] = np.concatenate(
                [(len(lengths), *lengths) for lengths in self.choices]
            )
        for name, array in arrays.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> FeatureSet:
        """The features from `start` up to `stop`, which is not among them."""
        first, last = self.starts[start], self.starts[stop]
        count, mine, own = len(self), slice(start, stop), slice(first, last)
        return FeatureSet(
            tokens=self.tokens[own],
            starts=self.starts[start : stop + 1] - first,
            segments=None if self.segments is None else self.segments[own],
            targets={n: c[mine if len(c) == count else own] for n, c in self.targets.items()},
            records=self.records[mine],
            choices=None if self.choices is None else self.choices[mine],
        )

    @classmethod
    def joined(cls, parts: Sequence[FeatureSet]) -> FeatureSet:
        """The features of several sets, which have the same targets, one set after the other.

        Records of different sets stay different: their numbers go on where the set before ended.
        """
        before = np.cumsum([0, *(int(part.records.max(initial=-1)) + 1 for part in parts)])
        sizes = [part.lengths for part in parts]
        segments = [part.segments for part in parts if part.segments is not None]
        choices = [part.choices for part in parts if part.choices is not None]
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            starts=np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int64),
            segments=np.concatenate(segments) if segments else None,
            targets={
                name: np.concatenate([part.targets[name] for part in parts])
                for name in parts[0].targets
            },
            records=np.concatenate(
                [part.records + first for part, first in zip(parts, before, strict=False)]
            ),
            choices=tuple(chain.from_iterable(choices)) if choices else None,
        )

    @classmethod
    def of(cls, features: Iterable[Feature]) -> FeatureSet:
        """Gather features, which must agree on their targets, and on whether they have segments.

        Raises:
            ValueError: they do not agree, or a target by token has another length than the tokens.
        """
        tokens: list[Array] = []
        segments: list[Array] = []
        columns: dict[str, list[Array]] = {}
        kinds: dict[str, int] = {}
        records: list[int] = []
        choices: list[tuple[int, ...]] = []
        truncated = 0
        for feature in features:
            ids = np.asarray(feature.tokens, dtype=np.int32)
            if len(ids) == 0:
                raise ValueError(f"the feature of record {feature.record} has no tokens")
            # The sequences of a feature must add up to its tokens.
            if feature.choices is not None:
                if min(feature.choices) < 1 or sum(feature.choices) != len(ids):
                    raise ValueError(f"choices of {feature.choices} are not {len(ids)} tokens")
                choices.append(tuple(feature.choices))
            tokens.append(ids)
            if feature.segments is not None:
                segments.append(np.asarray(feature.segments, dtype=np.uint8))
            # A target is one value a feature or one value a token, the same for all features.
            for name, value in feature.targets.items():
                column = np.atleast_1d(np.asarray(value))
                if np.ndim(value) == 1 and len(column) != len(ids):
                    raise ValueError(f"target '{name}': {len(column)} values for {len(ids)} tokens")
                if kinds.setdefault(name, np.ndim(value)) != np.ndim(value):
                    raise ValueError(f"target '{name}': now one a feature, now one a token")
                columns.setdefault(name, []).append(column)
            # Sums for people, and where each feature came from.
            records.append(feature.record)
            truncated += feature.truncated
        # What some features have, all must have.
        uneven = [name for name, column in columns.items() if len(column) != len(records)]
        if uneven or {len(segments), len(choices)} - {0, len(records)}:
            what = ", ".join(uneven) or "segments or choices"
            raise ValueError(f"only some features have {what}")
        return cls(
            tokens=_join(tokens, np.int32),
            starts=np.cumsum([0, *(len(ids) for ids in tokens)], dtype=np.int64),
            segments=_join(segments, np.uint8) if segments else None,
            targets={name: np.concatenate(column) for name, column in columns.items()},
            records=np.asarray(records, dtype=np.int64),
            truncated=truncated,
            choices=tuple(choices) if choices else None,
        )

    def batch(self, which: Array, *, sort: bool = True) -> PackedBatch:
        """Pack some features, shortest first: neighbours of similar length make attention cheap.

        `which` holds their numbers `[B]`; without `sort` they keep that order.
        """
        # A stable sort: features of equal length keep their order.
        lengths = self.lengths[which]
        if sort:
            ascending = np.argsort(lengths, kind="stable")
            which, lengths = which[ascending], lengths[ascending]
        parts, choices = self.sequences(which), None
        if self.choices is not None:
            choices = tuple(len(self.choices[i]) for i in which)
        # Rows of the flat arrays: all tokens of all chosen features; and positions from 0.
        positions = ranges(np.zeros_like(parts), parts)
        rows = ranges(self.starts[:-1][which], lengths)
        targets = {
            name: torch.from_numpy(column[which if len(column) == len(self) else rows])
            for name, column in self.targets.items()
        }
        segments = None
        if self.segments is not None:
            segments = torch.from_numpy(self.segments[rows].astype(np.int64))
        return PackedBatch(
            tokens=torch.from_numpy(self.tokens[rows].astype(np.int64)),
            layout=Layout.of(parts.tolist()),
            positions=torch.from_numpy(positions),
            segments=segments,
            targets=targets,
            index=torch.from_numpy(np.array(which, dtype=np.int64, order="C")),
            choices=choices,
        )


def _join(arrays: list[Array], dtype: Any) -> Array:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


class Features(Protocol):
    """Many features, in memory or made on demand, as training and evaluation use them."""

    @property
    def lengths(self) -> Array:
        """`[N]` integers: tokens of each feature."""

    @property
    def truncated(self) -> int:
        """Number of features whose text was cut."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Records that nothing can be learned from."""

    @property
    def repaired(self) -> tuple[Repaired, ...]:
        """Records that were repaired."""

    @property
    def choices(self) -> tuple[tuple[int, ...], ...] | None:
        """The lengths of each feature's sequences, where features have several."""

    @property
    def continues(self) -> Array:
        """`[N]` bool: whether a feature continues the record of the feature before it."""

    def __len__(self) -> int: ...

    def sequences(self, which: Array) -> Array:
        """Tokens of each sequence of some features; a feature may have several sequences."""

    def batch(self, which: Array, *, sort: bool = True) -> PackedBatch:
        """Pack some features, shortest first, or in the given order; any thread may call it."""

    def record(self, index: int) -> int:
        """The number of a feature's record."""

    def fingerprint(self) -> str:
        """A SHA-256 of everything a model can learn from these features, in their order."""


@dataclass(frozen=True)
class MadeFeatures:
    """Features that are made each time they are needed, and kept nowhere."""

    lengths: Array  # `[N]` tokens of each feature
    # Makes a feature from its number; the same one each time, in any thread.
    make: Callable[[int], Feature]
    digest: str  # a SHA-256 of what the features are made from, and how
    truncated: int = 0  # number of features whose text was cut
    # `[N]` bool: whether a feature is the first of its record; None: each is.
    begins: Array | None = None
    skipped: tuple[Skipped, ...] = ()  # records that nothing can be learned from
    choices: None = None  # None: each feature is one sequence
    repaired: tuple[Repaired, ...] = ()  # records that were repaired

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, which: Array, *, sort: bool = True) -> PackedBatch:
        """Pack some features; see `FeatureSet.batch`."""
        made = FeatureSet.of(self.make(int(index)) for index in which)
        batch = made.batch(np.arange(len(which)), sort=sort)
        index = np.asarray(which, dtype=np.int64)[batch.index.numpy()]
        return replace(batch, index=torch.from_numpy(index))

    @property
    def continues(self) -> Array:
        """`[N]` bool: whether a feature continues the record of the feature before it."""
        return np.zeros(len(self), np.bool_) if self.begins is None else ~self.begins

    def sequences(self, which: Array) -> Array:
        """Tokens of each sequence of some features, which are one sequence each."""
        lengths: Array = self.lengths[which]
        return lengths

    def record(self, index: int) -> int:
        """The number of a feature's record."""
        return self.make(index).record

    def fingerprint(self) -> str:
        """A SHA-256 of everything a model can learn from these features, in their order."""
        return self.digest
