"""Scaled dot-product attention over packed sequences: the one place that knows about hardware.

    attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V        (Vaswani et al. 2017, equation 1)

Each query sees the keys of its own sequence and no other. Four ways to the same numbers:

- `attention_reference`: the equation, one query at a time; the others are tested against it.
- One sequence, as of one text: the rows are seen as they lie, without a plan.
- CPU (and float32 on CUDA): sequences of similar length form a group, a small padded batch.
- CUDA in half precision: FlashAttention's varlen kernel (`flash.py`), if its first use is right.

Families vary the equation: another scale than 1 / sqrt(d); a window, beyond which a query sees
nothing; something that is added to the scores, such as T5's relative positions; several heads of
queries that share one head of keys and values. Every way knows all of them, or leaves the batch to
one that does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import Layout
from pretune.models import flash
from pretune.models.ops import dropout

#: How much longer than its shortest sequence the longest sequence of a group may be.
GROUP_RATIO = 1.15
GROUP_SLACK = 2
#: Queries of a long sequence that look at their window together; more, where a window is wider.
BLOCK = 128

#: What is added to the scaled scores: a function of queries `[B, H, Lq, D]`, keys `[B, H, Lk, D]`
#: (neither is scaled) and distances `[1 or B, Lq, Lk]` int64, the place of the key minus that of
#: the query. It gives a tensor that broadcasts to `[B, H, Lq, Lk]`.
ScoreBias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Rule:
    """How queries score keys; the attributes are the arguments of `attention`."""

    causal: bool = False
    scale: float | None = None
    window: int | None = None
    score_bias: ScoreBias | None = None

    @property
    def usual(self) -> bool:
        """Whether nothing is added to the scores, and no window hides keys."""
        return self.window is None and self.score_bias is None

    def within(self, longest: int) -> _Rule:
        """The same rule, without a window that hides nothing of sequences up to `longest`."""
        if self.window is None or self.window < longest:
            return self
        return _Rule(self.causal, self.scale, None, self.score_bias)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
    score_bias: ScoreBias | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Attention within each sequence of a packed batch.

    Args:
        q: `[Tq, H, D]`. Rows past `queries.total` are padding and come back as zeros.
        k: `[Tk, K, D]`. K is H, or a divisor: then each head of keys and values serves H / K heads
            of queries that follow each other (Ainslie et al. 2023).
        v: `[Tk, K, D]`.
        queries: the sequences of `q`.
        keys: the sequences of `k` and `v`; the same object for self-attention; a layout
            with the same number of sequences for cross-attention, or for selected queries.
        causal: query i of a sequence sees keys up to i, counted from the end of both, so that a
            single last query sees all keys.
        dropout_p: probability of dropping an attention weight; 0 when not training.
        scale: factor on the products of queries and keys; None: 1 / sqrt(D).
        window: a query sees only keys at a distance below this, on both sides.
        score_bias: gives what is added to the scaled scores.
        places: `[Tq]` int64, the place of each query among its sequence's keys, for `window` and
            `score_bias`; None: queries are the last ones of their sequences.

    Returns:
        `[Tq, H, D]`.

    Raises:
        ValueError: the layouts have different numbers of sequences, or a query sees no key.
    """
    if keys is not queries:
        _check(queries, keys, causal)
    rule = _Rule(causal, scale, window, score_bias).within(keys.max_seqlen)
    places = None if rule.usual else places
    # FlashAttention knows half precision only, and nothing that is added to the scores.
    if flash.applies(q) and rule.score_bias is None and places is None:
        kind = causal, rule.window is not None, dropout_p > 0.0
        if flash.works(q.device, q.dtype, q.shape[-1], *kind):
            how = causal, scale, rule.window, dropout_p
            return _pad_rows(flash.flash_attention(q, k, v, queries, keys, *how), len(q))
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # On a CPU the small products and the softmax of a group are slower in bf16 than in float32.
        with torch.autocast("cpu", enabled=False):
            exact = q.float(), k.float(), v.float()
            return _grouped(*exact, queries, keys, rule, dropout_p, places)
    return _grouped(q, k, v, queries, keys, rule, dropout_p, places)


def _grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    rule: _Rule,
    dropout_p: float,
    places: Tensor | None,
) -> Tensor:
    causal = rule.causal
    if len(queries.lengths) == 1 and dropout_p == 0.0 and rule.usual:
        length, seen = queries.total, keys.total
        # A single query sees all keys; others are counted from the end, which is a matter of masks.
        if length and (length in (1, seen) or not causal):
            own, causal = (q[:length], k[:seen], v[:seen]), causal and length > 1
            return _pad_rows(attention_single(*own, causal=causal, scale=rule.scale), len(q))
    # Groups come out sorted by length; `restore` puts their rows back.
    plan = _plan(queries, keys, rule if places is None else _Rule(), q.device)
    outputs = [_attend_group(q, k, v, group, rule, dropout_p, places) for group in plan.groups]
    packed = outputs[0] if len(outputs) == 1 else torch.cat([q[:0], *outputs])
    if plan.restore is not None:
        packed = packed.index_select(0, plan.restore)
    return _pad_rows(packed, len(q))


def attention_single(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """Attention within one sequence, `[Lq, H, D]`.

    Args:
        q: `[Lq, H, D]`.
        k: `[Lk, K, D]`.
        v: `[Lk, K, D]`.
        causal: query i sees keys up to i; Lq is Lk.
        scale: as in `attention`.
    """
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    key, value = _for_all_heads(key, value, q.shape[1])
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)
    return mixed.squeeze(0).transpose(0, 1)


def attention_step(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    places: Tensor | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    score_bias: ScoreBias | None = None,
) -> Tensor:
    """Attention of one new token of each sequence to the keys in a cache, `[B, H, D]`.

    Args:
        q: `[B, H, D]`, of the new tokens; further rows are padding.
        keys: `[B, K, L, D]`, including the keys of the new tokens.
        values: `[B, K, L, D]`.
        visible: `[B, 1, 1, L]` False where a sequence has no key; None: all have L keys.
        places: `[B]`, the number of the key of each new token; not needed without `visible`.
        scale: as in `attention`.
        window: as in `attention`.
        score_bias: as in `attention`.
    """
    count, shared, longest, size = keys.shape
    newest = q[:count]
    # The numbers of the keys that are looked at, and each query's own.
    columns = torch.arange(longest, device=q.device)
    at = columns[-1:] if visible is None or places is None else places
    if window is not None and window < longest:
        if visible is None:
            keys, values = keys[:, :, -window:], values[:, :, -window:]
            columns = columns[-window:]
        else:
            visible = visible & (columns > at[:, None] - window)[:, None, None]
    mask = visible
    if score_bias is not None:
        every = _for_all_heads(keys, keys, q.shape[1])[0]
        mask = score_bias(newest.unsqueeze(2), every, (columns - at[:, None])[:, None]).to(q.dtype)
        mask = mask.expand(-1, q.shape[1], -1, -1)
        mask = mask if visible is None else mask.masked_fill(~visible, float("-inf"))
        mask = mask.reshape(len(mask), shared, -1, mask.shape[-1])
    # The queries that share keys are the rows of one product: no key is copied.
    newest = newest.reshape(count, shared, -1, size)
    mixed = F.scaled_dot_product_attention(newest, keys, values, attn_mask=mask, scale=scale)
    return _pad_rows(mixed.reshape(count, -1, size), len(q))


def attention_after(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    queries: Layout,
    lengths: Sequence[int],
    *,
    scale: float | None = None,
    window: int | None = None,
    score_bias: ScoreBias | None = None,
) -> Tensor:
    """Attention of several new tokens of each sequence to the keys in a cache, `[Tq, H, D]`.

    Args:
        q: `[Tq, H, D]`, packed: the new tokens; further rows are padding.
        keys: `[B, K, L, D]`, including the keys of the new tokens.
        values: `[B, K, L, D]`.
        queries: the layout of the new tokens.
        lengths: number of keys of each sequence; its last query sees them all.
        scale: as in `attention`.
        window: as in `attention`.
        score_bias: as in `attention`.
    """
    # The packed queries as a padded batch [B, longest, H, D].
    asking = torch.tensor(queries.lengths)
    rows = torch.repeat_interleave(asking)
    columns = torch.cat([torch.arange(n) for n in queries.lengths])
    rows, columns = rows.to(q.device), columns.to(q.device)
    padded = q.new_zeros(len(asking), queries.max_seqlen, *q.shape[1:])
    padded[rows, columns] = q[: queries.total]
    padded = padded.transpose(1, 2)
    keys, values = _for_all_heads(keys, values, q.shape[1])
    # Query j sees the keys before the sequence's new tokens, and j + 1 keys of new tokens. What
    # only fills up the batch stands where the last query does.
    ends = torch.tensor(lengths)
    first = (ends - asking)[:, None] + torch.arange(queries.max_seqlen)
    at = torch.minimum(first, ends[:, None] - 1)[:, :, None]
    seen = torch.arange(keys.shape[2]) <= at
    if window is not None:
        seen &= torch.arange(keys.shape[2]) > at - window
    mask = seen[:, None].to(q.device)
    if score_bias is not None:
        distances = (torch.arange(keys.shape[2]) - at).to(q.device)
        bias = score_bias(padded, keys, distances).to(q.dtype)
        mask = bias.masked_fill(~mask, float("-inf"))
    mixed = F.scaled_dot_product_attention(padded, keys, values, attn_mask=mask, scale=scale)
    return _pad_rows(mixed.transpose(1, 2)[rows, columns], len(q))


def _for_all_heads(keys: Tensor, values: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values `[B, K, L, D]`, once for each head of queries: `[B, H, L, D]`."""
    shared = keys.shape[1]
    if shared == heads:
        return keys, values
    keys, values = (
        x.unsqueeze(2).expand(-1, -1, heads // shared, -1, -1).flatten(1, 2) for x in (keys, values)
    )
    return keys, values


def _check(queries: Layout, keys: Layout, causal: bool) -> None:
    if len(queries.lengths) != len(keys.lengths):
        raise ValueError(
            f"{len(queries.lengths)} query sequences, {len(keys.lengths)} key sequences"
        )
    for i, (asking, seen) in enumerate(zip(queries.lengths, keys.lengths, strict=True)):
        # A softmax over no keys is 0 / 0.
        if asking and (not seen or (causal and asking > seen)):
            raise ValueError(f"sequence {i}: {asking} queries, but only {seen} keys")


def _pad_rows(x: Tensor, rows: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, rows - len(x))) if rows > len(x) else x


@dataclass(frozen=True)
class _Group:
    """Sequences of similar length, as a `[B, Lq] x [B, Lk]` batch.

    Rows are an index, or the range (start, end) of rows that form the batch as they are.
    """

    size: int
    query_length: int
    key_length: int
    query_rows: Tensor | tuple[int, int]
    key_rows: Tensor | tuple[int, int]
    valid: Tensor | None  # [number of real queries] positions in the flattened [B * Lq]
    key_lengths: Tensor | None  # [B, 1], if not all have key_length keys
    shift: Tensor  # [B, 1, 1]: where the first query of each sequence stands among its keys
    aligned: bool  # whether that is the same for all sequences
    masks: dict[Any, Tensor | None] = field(default_factory=dict)  # see `_mask`; for all layers

    @property
    def square(self) -> bool:
        """Whether all sequences have the same number of queries, and as many keys."""
        ragged = self.valid is not None or self.key_lengths is not None
        return not ragged and self.query_length == self.key_length


@dataclass(frozen=True)
class _Plan:
    groups: list[_Group]
    restore: Tensor | None  # index that puts the rows of all groups into the order of the batch


def _plan(queries: Layout, keys: Layout, rule: _Rule, device: torch.device) -> _Plan:
    # A plan depends on the lengths alone. The key for self-attention is short, as every layer looks
    # it up.
    near = rule.window is not None and keys is queries and queries.max_seqlen >= 2 * _span(rule)
    key = (rule.window, rule.causal) if near else "self" if keys is queries else keys.lengths
    if key not in queries.plans:
        asking, seen, shifts = _blocks(queries, rule) if near else (queries, keys, None)
        queries.plans[key] = _make_plan(asking, seen, device, shifts)
    plan: _Plan = queries.plans[key]
    return plan


@dataclass(frozen=True)
class _Pieces:
    """Runs of rows: where each begins, and how many it has; they may overlap."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]


def _span(rule: _Rule) -> int:
    """How many keys a block of queries sees, of which a window hides all others."""
    near = (rule.window or 1) - 1
    return max(BLOCK, near) + near * (1 if rule.causal else 2)


def _blocks(layout: Layout, rule: _Rule) -> tuple[_Pieces, _Pieces, list[int]]:
    """Cut long sequences into blocks of queries, each with the keys that its windows leave.

    Returns:
        queries and keys of each block, and where its first query stands among its keys.
    """
    near, cut = (rule.window or 1) - 1, 2 * _span(rule)
    size = max(BLOCK, near)
    queries, keys, shifts = list[tuple[int, int]](), list[tuple[int, int]](), list[int]()
    for start, length in zip(layout.starts, layout.lengths, strict=True):
        step = size if length >= cut else max(length, 1)
        for first in range(0, length, step):
            last = min(first + step, length)
            low = max(first - near, 0)
            high = last if rule.causal else min(last + near, length)
            queries.append((start + first, last - first))
            keys.append((start + low, high - low))
            shifts.append(first - low)
    asking, seen = (_Pieces(*zip(*runs, strict=True)) for runs in (queries, keys))
    return asking, seen, shifts


def _make_plan(
    queries: Layout | _Pieces,
    keys: Layout | _Pieces,
    device: torch.device,
    shifts: Sequence[int] | None = None,
) -> _Plan:
    """Sort sequences into groups.

    Args:
        queries: the sequences.
        keys: those that they see.
        device: for the indices.
        shifts: where the first query of each stands among its keys; default: the last queries stand
            at the ends.
    """
    if shifts is None:
        shifts = [k - q for q, k in zip(queries.lengths, keys.lengths, strict=True)]
    # Sort sequences by length, and start a new group where one is too far from the first. Answers
    # go longest first, as their batches come: there nothing has to be put back in order. The order
    # of training is never another: dropout draws its numbers group by group.
    asking = [i for i, length in enumerate(queries.lengths) if length > 0]
    order = sorted(
        asking,
        key=lambda i: (keys.lengths[i], queries.lengths[i]),
        reverse=not torch.is_grad_enabled(),
    )
    members: list[list[int]] = []
    for i in order:
        first = keys.lengths[members[-1][0]] if members else 0
        shorter, longer = sorted((first, keys.lengths[i]))
        fits = longer <= shorter * GROUP_RATIO + GROUP_SLACK
        if members and fits:
            members[-1].append(i)
        else:
            members.append([i])
    groups = [
        _make_group(group, queries, keys, [shifts[i] for i in group], device) for group in members
    ]
    # Sorting changed the order of the rows, which must be undone at the end.
    restore = None
    if order != asking:
        rows = torch.cat([_rows([i], queries) for i in order])
        restore = torch.empty_like(rows)
        restore[rows] = torch.arange(len(rows))
        restore = restore.to(device)
    return _Plan(groups, restore)


def _rows(members: list[int], layout: Layout | _Pieces) -> Tensor:
    starts, lengths = layout.starts, layout.lengths
    return torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in members])


def _padded_rows(
    members: list[int], layout: Layout | _Pieces, lanes: int = 1
) -> Tensor | tuple[int, int]:
    """The rows of a `[B, L]` batch. Past its end a sequence repeats its last row, masked later.

    Where L lacks at most half of `lanes` to a multiple of them, it becomes one.
    """
    longest = max(layout.lengths[i] for i in members)
    starts = torch.tensor([layout.starts[i] for i in members])
    lengths = torch.tensor([layout.lengths[i] for i in members])
    # Equal lengths without gaps: a view of the rows, instead of a copy by index.
    contiguous = bool((starts == starts[0] + longest * torch.arange(len(members))).all())
    if contiguous and bool((lengths == longest).all()):
        return int(starts[0]), int(starts[0]) + longest * len(members)
    more = -longest % lanes
    columns = torch.arange(longest + (more if 2 * more <= lanes else 0))
    return (starts[:, None] + torch.minimum(columns, lengths[:, None] - 1)).flatten()


def _make_group(
    members: list[int],
    queries: Layout | _Pieces,
    keys: Layout | _Pieces,
    shifts: list[int],
    device: torch.device,
) -> _Group:
    def put(rows: Tensor | tuple[int, int]) -> Tensor | tuple[int, int]:
        return rows.to(device) if isinstance(rows, Tensor) else rows

    # Padding is needed only where lengths differ within the group.
    query_lengths = torch.tensor([queries.lengths[i] for i in members])
    key_lengths = torch.tensor([keys.lengths[i] for i in members])
    query_rows = _padded_rows(members, queries)
    key_rows = _padded_rows(members, keys, _lanes(device))
    query_length = int(query_lengths.max())
    key_length = int(key_lengths.max())
    if isinstance(key_rows, Tensor):
        key_length = len(key_rows) // len(members)
    valid = None
    if bool((query_lengths < query_length).any()):
        valid = (torch.arange(query_length) < query_lengths[:, None]).flatten().nonzero()[:, 0]
        valid = valid.to(device)
    ragged = bool((key_lengths < key_length).any())
    return _Group(
        size=len(members),
        query_length=query_length,
        key_length=key_length,
        query_rows=put(query_rows),
        key_rows=put(key_rows),
        valid=valid,
        key_lengths=key_lengths[:, None].to(device) if ragged else None,
        shift=torch.tensor(shifts)[:, None, None].to(device),
        aligned=len(set(shifts)) == 1,
    )


def _lanes(device: torch.device) -> int:
    """How many keys a vector of the processor holds, where those left over are slow.

    PyTorch's kernel takes a third longer for 26 keys than for 32 with AVX-512; not so with AVX2.
    In training dropout draws a number for each key, which must not depend on the processor.
    """
    if device.type != "cpu" or torch.is_grad_enabled():
        return 1
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1


def _gather(x: Tensor, rows: Tensor | tuple[int, int], size: int) -> Tensor:
    """`[T, H, D]` to `[B, H, L, D]`."""
    if isinstance(rows, Tensor):
        taken = x.index_select(0, rows)
    else:
        # The gradient of a slice is a table of zeros that it is copied into: none of all rows.
        taken = x if rows == (0, len(x)) else x[rows[0] : rows[1]]
    return taken.view(size, -1, *x.shape[1:]).transpose(1, 2)


def _forbidden(
    group: _Group, rule: _Rule, places: Tensor | None, device: torch.device
) -> Tensor | None:
    """The mask `[1 or B, 1, 1 or Lq, Lk]`, True where a query must not look.

    None: it may look everywhere.
    """
    column = torch.arange(group.key_length, device=device)
    mask = None
    if group.key_lengths is not None:
        mask = (column >= group.key_lengths)[:, None, None, :]
    if rule.causal:
        row = torch.arange(group.query_length, device=device)[:, None]
        later = (column > row + group.shift)[:, None]
        mask = later if mask is None else mask | later
    if rule.window is not None:
        # What only fills up the batch stands where the last query does: a softmax over no keys
        # would be no number, and its gradient neither.
        ends = group.key_length if group.key_lengths is None else group.key_lengths[:, :, None]
        at = torch.minimum(_places(group, places, device), torch.as_tensor(ends - 1, device=device))
        far = (column <= at - rule.window) | (column >= at + rule.window)
        mask = far[:, None] if mask is None else mask | far[:, None]
    return mask


def _mask(group: _Group, rule: _Rule, places: Tensor | None, q: Tensor) -> Tensor | None:
    """What is added to scores so that no query looks where it must not: 0 or -inf; None: nothing.

    It is the same in all layers of one kind.
    """
    key = (rule.causal, rule.window, q.dtype) if places is None else None
    if key is not None and key in group.masks:
        return group.masks[key]
    forbidden, mask = _forbidden(group, rule, places, q.device), None
    if forbidden is not None:
        mask = q.new_zeros(forbidden.shape).masked_fill_(forbidden, float("-inf"))
    if key is not None:
        group.masks[key] = mask
    return mask


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one + other if one is not None and other is not None else other if one is None else one


def _places(group: _Group, places: Tensor | None, device: torch.device) -> Tensor:
    """Where each query stands among the keys of its sequence, `[1 or B, Lq, 1]`."""
    if places is None:
        shift = group.shift[:1] if group.aligned else group.shift
        return torch.arange(group.query_length, device=device)[:, None] + shift
    rows = group.query_rows
    own = places[rows] if isinstance(rows, Tensor) else places[rows[0] : rows[1]]
    return own.view(group.size, -1, 1)


def _attend_group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: _Group,
    rule: _Rule,
    dropout_p: float,
    places: Tensor | None,
) -> Tensor:
    """Attention within one group, `[n, H, D]` for its n real queries."""
    q = _gather(q, group.query_rows, group.size)
    k = _gather(k, group.key_rows, group.size)
    v = _gather(v, group.key_rows, group.size)
    k, v = _for_all_heads(k, v, q.shape[1])
    bias = None
    if rule.score_bias is not None:
        column = torch.arange(group.key_length, device=q.device)
        bias = rule.score_bias(q, k, column - _places(group, places, q.device)).to(q.dtype)
    # SDPA never holds the L x L scores, but its dropout is slow on a CPU.
    if dropout_p > 0.0:
        bias = _sum(bias, _mask(group, rule, places, q))
        weights = _weights(q, k, None, rule.scale, bias)
        mixed = dropout(weights, dropout_p, training=True) @ v
    elif rule.causal and rule.usual and group.square:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scale)
    else:
        bias = _sum(bias, _mask(group, rule, places, q))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=rule.scale)
    # Back to packed rows, without those of padding.
    mixed = mixed.transpose(1, 2).reshape(-1, mixed.shape[1], mixed.shape[3])
    return mixed if group.valid is None else mixed.index_select(0, group.valid)


def _weights(
    q: Tensor,
    k: Tensor,
    forbidden: Tensor | None,
    scale: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    scaled = q / math.sqrt(q.shape[-1]) if scale is None else q * scale
    scores = scaled @ k.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, float("-inf"))
    return scores.softmax(-1)


def attention_maps(
    q: Tensor,
    k: Tensor,
    queries: Layout,
    keys: Layout,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    score_bias: ScoreBias | None = None,
) -> list[Tensor]:
    """The attention weights of each sequence, `[H, Lq, Lk]`, whose rows sum to 1.

    The arguments are as for `attention`.
    """
    maps = []
    for i in range(len(queries.lengths)):
        rows = slice(queries.starts[i], queries.starts[i] + queries.lengths[i])
        columns = slice(keys.starts[i], keys.starts[i] + keys.lengths[i])
        one_q, one_k = (x.transpose(0, 1).unsqueeze(0) for x in (q[rows], k[columns]))
        one_k = _for_all_heads(one_k, one_k, q.shape[1])[0]
        length_q, length_k = one_q.shape[2], one_k.shape[2]
        at = torch.arange(length_k - length_q, length_k, device=q.device)[:, None]
        distances = torch.arange(length_k, device=q.device) - at
        forbidden = distances > 0 if causal else torch.zeros_like(distances, dtype=torch.bool)
        if window is not None:
            forbidden |= distances.abs() >= window
        bias = None if score_bias is None else score_bias(one_q, one_k, distances[None])
        maps.append(_weights(one_q, one_k, forbidden, scale, bias).squeeze(0))
    return maps


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    *,
    causal: bool = False,
    scale: float | None = None,
    window: int | None = None,
    score_bias: ScoreBias | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """The equation, one query at a time: slow and obvious. Returns `[queries.total, H, D]`.

    The arguments are as for `attention`.
    """
    outputs = []
    for i, length in enumerate(queries.lengths):
        start_k, length_k = keys.starts[i], keys.lengths[i]
        for j in range(length):
            row, at = queries.starts[i] + j, length_k - length + j
            first, visible = 0, at + 1 if causal else length_k
            if places is not None:
                at = int(places[row])
            if window is not None:
                first, visible = max(at - window + 1, 0), min(at + window, visible)
            query = q[row]  # [H, D]
            # Heads 0, 1, .. of a group of queries have the same keys and values.
            group = q.shape[1] // k.shape[1]
            key = k[start_k + first : start_k + visible].repeat_interleave(group, 1)  # [L, H, D]
            value = v[start_k + first : start_k + visible].repeat_interleave(group, 1)
            scores = (query * key).sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
            if score_bias is not None:
                distances = torch.arange(first, visible, device=q.device) - at
                own = query[None, :, None], key.transpose(0, 1)[None], distances[None, None]
                scores = scores + score_bias(*own)[0, :, 0].t()  # [L, H]
            weights = scores.exp() / scores.exp().sum(0)
            outputs.append((weights[:, :, None] * value).sum(0))
    return torch.stack(outputs)
