"""Scaled dot-product attention over packed sequences: the one place that knows about hardware.

    attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V        (Vaswani et al. 2017, equation 1)

Each query sees the keys of its own sequence and no other. Four ways to the same numbers:

- `attention_reference`: the equation, one query at a time; the others are tested against it.
- One sequence, as of one text: the rows are seen as they lie, without a plan.
- CPU (and float32 on CUDA): sequences of similar length form a group, a small padded batch.
- CUDA in half precision: FlashAttention's varlen kernel, which takes the borders as `cu_seqlens`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import Layout
from pretune.models.ops import dropout

#: How much longer than its shortest sequence the longest sequence of a group may be.
GROUP_RATIO = 1.15
GROUP_SLACK = 2


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Layout,
    keys: Layout,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention within each sequence of a packed batch.

    Args:
        q: `[Tq, H, D]`. Rows past `queries.total` are padding and come back as zeros.
        k: `[Tk, H, D]`.
        v: `[Tk, H, D]`.
        queries: the sequences of `q`.
        keys: the sequences of `k` and `v`; the same object for self-attention; a layout
            with the same number of sequences for cross-attention, or for selected queries.
        causal: query i of a sequence sees keys up to i, counted from the end of both, so that a
            single last query sees all keys.
        dropout_p: probability of dropping an attention weight; 0 when not training.

    Returns:
        `[Tq, H, D]`.

    Raises:
        ValueError: the layouts have different numbers of sequences, or a query sees no key.
    """
    if keys is not queries:
        _check(queries, keys, causal)
    # FlashAttention knows half precision only.
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        return _pad_rows(_varlen(q, k, v, queries, keys, causal, dropout_p), len(q))
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # On a CPU the small products and the softmax of a group are slower in bf16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return _grouped(q.float(), k.float(), v.float(), queries, keys, causal, dropout_p)
    return _grouped(q, k, v, queries, keys, causal, dropout_p)


def _grouped(
    q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, causal: bool, dropout_p: float
) -> Tensor:
    if len(queries.lengths) == 1 and dropout_p == 0.0:
        length, seen = queries.total, keys.total
        # A single query sees all keys; others are counted from the end, which is a matter of masks.
        if length and (length in (1, seen) or not causal):
            mixed = attention_single(q[:length], k[:seen], v[:seen], causal=causal and length > 1)
            return _pad_rows(mixed, len(q))
    # Groups come out sorted by length; `restore` puts their rows back.
    plan = _plan(queries, keys, q.device)
    outputs = [_attend_group(q, k, v, group, causal, dropout_p) for group in plan.groups]
    packed = outputs[0] if len(outputs) == 1 else torch.cat([q[:0], *outputs])
    if plan.restore is not None:
        packed = packed.index_select(0, plan.restore)
    return _pad_rows(packed, len(q))


def attention_single(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Attention within one sequence, `[Lq, H, D]`.

    Args:
        q: `[Lq, H, D]`.
        k: `[Lk, H, D]`.
        v: `[Lk, H, D]`.
        causal: query i sees keys up to i; Lq is Lk.
    """
    query, key, value = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return mixed.squeeze(0).transpose(0, 1)


def attention_step(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of one new token of each sequence to the keys in a cache, `[B, H, D]`.

    Args:
        q: `[B, H, D]`, of the new tokens; further rows are padding.
        keys: `[B, H, L, D]`, including the keys of the new tokens.
        values: `[B, H, L, D]`.
        visible: `[B, 1, 1, L]` False where a sequence has no key; None: all have L keys.
    """
    newest = q[: len(keys)].unsqueeze(2)
    mixed = F.scaled_dot_product_attention(newest, keys, values, attn_mask=visible)
    return _pad_rows(mixed.squeeze(2), len(q))


def attention_after(
    q: Tensor, keys: Tensor, values: Tensor, queries: Layout, lengths: Sequence[int]
) -> Tensor:
    """Attention of several new tokens of each sequence to the keys in a cache, `[Tq, H, D]`.

    Args:
        q: `[Tq, H, D]`, packed: the new tokens; further rows are padding.
        keys: `[B, H, L, D]`, including the keys of the new tokens.
        values: `[B, H, L, D]`.
        queries: the layout of the new tokens.
        lengths: number of keys of each sequence; its last query sees them all.
    """
    # The packed queries as a padded batch [B, longest, H, D].
    asking = torch.tensor(queries.lengths)
    rows = torch.repeat_interleave(asking)
    columns = torch.cat([torch.arange(n) for n in queries.lengths])
    rows, columns = rows.to(q.device), columns.to(q.device)
    padded = q.new_zeros(len(asking), queries.max_seqlen, *q.shape[1:])
    padded[rows, columns] = q[: queries.total]
    # Query j sees the keys before the sequence's new tokens, and j + 1 keys of new tokens.
    first = (torch.tensor(lengths) - asking)[:, None] + torch.arange(queries.max_seqlen)
    seen = torch.arange(keys.shape[2]) <= first[:, :, None]
    mixed = F.scaled_dot_product_attention(
        padded.transpose(1, 2), keys, values, attn_mask=seen[:, None].to(q.device)
    )
    return _pad_rows(mixed.transpose(1, 2)[rows, columns], len(q))


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
    causal_shift: Tensor  # [B, 1, 1]: keys - queries of each sequence

    @property
    def square(self) -> bool:
        """Whether all sequences have the same number of queries, and as many keys."""
        ragged = self.valid is not None or self.key_lengths is not None
        return not ragged and self.query_length == self.key_length


@dataclass(frozen=True)
class _Plan:
    groups: list[_Group]
    restore: Tensor | None  # index that puts the rows of all groups into the order of the batch


def _plan(queries: Layout, keys: Layout, device: torch.device) -> _Plan:
    # A plan depends on the lengths alone. The key for self-attention is short, as every layer looks
    # it up.
    key = "self" if keys is queries else keys.lengths
    if key not in queries.plans:
        queries.plans[key] = _make_plan(queries, keys, device)
    plan: _Plan = queries.plans[key]
    return plan


def _make_plan(queries: Layout, keys: Layout, device: torch.device) -> _Plan:
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
    groups = [_make_group(group, queries, keys, device) for group in members]
    # Sorting changed the order of the rows, which must be undone at the end.
    restore = None
    if order != asking:
        rows = torch.cat([_rows([i], queries) for i in order])
        restore = torch.empty_like(rows)
        restore[rows] = torch.arange(len(rows))
        restore = restore.to(device)
    return _Plan(groups, restore)


def _rows(members: list[int], layout: Layout) -> Tensor:
    starts, lengths = layout.starts, layout.lengths
    return torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in members])


def _padded_rows(members: list[int], layout: Layout, lanes: int = 1) -> Tensor | tuple[int, int]:
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


def _make_group(members: list[int], queries: Layout, keys: Layout, device: torch.device) -> _Group:
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
        causal_shift=(key_lengths - query_lengths)[:, None, None].to(device),
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


def _forbidden(group: _Group, causal: bool, device: torch.device) -> Tensor | None:
    """The mask `[B, 1, Lq or 1, Lk]`, True where a query must not look; None: it may everywhere."""
    column = torch.arange(group.key_length, device=device)
    mask = None
    if group.key_lengths is not None:
        mask = (column >= group.key_lengths)[:, None, None, :]
    if causal:
        row = torch.arange(group.query_length, device=device)[:, None]
        later = (column > row + group.causal_shift)[:, None]
        mask = later if mask is None else mask | later
    return mask


def _attend_group(
    q: Tensor, k: Tensor, v: Tensor, group: _Group, causal: bool, dropout_p: float
) -> Tensor:
    """Attention within one group, `[n, H, D]` for its n real queries."""
    q = _gather(q, group.query_rows, group.size)
    k = _gather(k, group.key_rows, group.size)
    v = _gather(v, group.key_rows, group.size)
    # SDPA never holds the L x L scores, but its dropout is slow on a CPU.
    if dropout_p > 0.0:
        weights = _weights(q, k, _forbidden(group, causal, q.device))
        mixed = dropout(weights, dropout_p, training=True) @ v
    elif causal and group.square:
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        forbidden = _forbidden(group, causal, q.device)
        allowed = None if forbidden is None else ~forbidden
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    # Back to packed rows, without those of padding.
    mixed = mixed.transpose(1, 2).reshape(-1, mixed.shape[1], mixed.shape[3])
    return mixed if group.valid is None else mixed.index_select(0, group.valid)


def _weights(q: Tensor, k: Tensor, forbidden: Tensor | None) -> Tensor:
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, float("-inf"))
    return scores.softmax(-1)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, causal: bool, dropout_p: float
) -> Tensor:
    q, k, v = q[: queries.total], k[: keys.total], v[: keys.total]
    sizes = (queries.cu_seqlens, keys.cu_seqlens, queries.max_seqlen, keys.max_seqlen)
    if dropout_p == 0.0:
        from torch.nn.attention.varlen import varlen_attn

        # How far a query sees to the left and to the right; -1: without limit.
        window = (-1, 0) if causal else (-1, -1)
        mixed = varlen_attn(q, k, v, *sizes, window_size=window)
        assert isinstance(mixed, Tensor)  # noqa: S101 - for the type checker: no aux was asked for
        return mixed
    # The public varlen_attn has no dropout. The kernel below it has, and is differentiable too.
    flash = torch.ops.aten._flash_attention_forward
    dropped: Tensor = flash(q, k, v, *sizes, dropout_p, causal, False)[0]
    return dropped


def attention_maps(
    q: Tensor, k: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> list[Tensor]:
    """The attention weights of each sequence, `[H, Lq, Lk]`, whose rows sum to 1."""
    maps = []
    for i in range(len(queries.lengths)):
        rows = slice(queries.starts[i], queries.starts[i] + queries.lengths[i])
        columns = slice(keys.starts[i], keys.starts[i] + keys.lengths[i])
        one_q, one_k = q[rows].transpose(0, 1), k[columns].transpose(0, 1)
        forbidden = None
        if causal:
            length_q, length_k = one_q.shape[1], one_k.shape[1]
            everywhere = torch.ones(length_q, length_k, dtype=torch.bool, device=q.device)
            forbidden = everywhere.triu(1 + length_k - length_q)
        maps.append(_weights(one_q, one_k, forbidden))
    return maps


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, queries: Layout, keys: Layout, *, causal: bool = False
) -> Tensor:
    """The equation, one query at a time: slow and obvious. Returns `[queries.total, H, D]`."""
    outputs = []
    for i, length in enumerate(queries.lengths):
        start_k, length_k = keys.starts[i], keys.lengths[i]
        for j in range(length):
            visible = length_k - length + j + 1 if causal else length_k
            query = q[queries.starts[i] + j]  # [H, D]
            key = k[start_k : start_k + visible]  # [L, H, D]
            value = v[start_k : start_k + visible]
            scores = (query * key).sum(-1) / q.shape[-1] ** 0.5  # [L, H]
            weights = scores.exp() / scores.exp().sum(0)
            outputs.append((weights[:, :, None] * value).sum(0))
    return torch.stack(outputs)
