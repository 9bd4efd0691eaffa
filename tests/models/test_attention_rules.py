"""What families vary in attention: scale, window, additions to the scores, shared heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pretune.data.batch import Layout
from pretune.models import attention as rules
from pretune.models.attention import (
    attention,
    attention_after,
    attention_maps,
    attention_reference,
    attention_step,
)

LENGTHS = (5, 9, 1, 9, 8, 3)
HEADS, SHARED, SIZE = 4, 2, 6

#: A probability that rounds to 0 of 65536: dropout's own path, which drops nothing.
DROPS_NOTHING = 1e-9


def by_distance(q: Tensor, k: Tensor, distances: Tensor) -> Tensor:
    """As T5: a number for each head and distance, whatever the content."""
    slopes = torch.tensor([0.3, -0.2, 0.05, 0.7])
    return (distances.clamp(-3, 3)[:, None] + 0.5) * slopes[:, None, None]


def by_content(q: Tensor, k: Tensor, distances: Tensor) -> Tensor:
    """As DeBERTa: products of queries and keys with vectors of distances."""
    table = torch.linspace(-1, 1, 7 * SIZE).view(7, SIZE).sin()
    near = table[distances.clamp(-3, 3) + 3][:, None]  # [1 or B, 1, Lq, Lk, D]
    return (q[..., None, :] * near).sum(-1) - 0.5 * (k[:, :, None] * near).sum(-1)


RULES: dict[str, dict[str, Any]] = {
    "shared": {"shared": SHARED},
    "scale": {"scale": 1.0},
    "window": {"window": 3},
    "a window of one": {"window": 1},
    "a wide window": {"window": 9},
    "distance": {"score_bias": by_distance},
    "content": {"score_bias": by_content},
    "all": {"shared": SHARED, "scale": 0.7, "window": 4, "score_bias": by_content},
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
each_side = pytest.mark.parametrize("causal", [False, True])


def sample(rule: dict[str, Any], lengths: tuple[int, ...]) -> tuple[list[Tensor], dict[str, Any]]:
    """Queries, keys and values, and the rule without the number of shared heads."""
    rule = dict(rule)
    heads = (HEADS, *[rule.pop("shared", HEADS)] * 2)
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = sum(lengths)
    qkv = [torch.randn(rows, n, SIZE, generator=generator).requires_grad_() for n in heads]
    return qkv, rule


def agree(ours: Tensor, wanted: Tensor, qkv: list[Tensor]) -> None:
    """Values and gradients are the same."""
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)
    probe = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(7))
    got, expected = (
        torch.autograd.grad((x * probe).sum(), qkv, retain_graph=True) for x in (ours, wanted)
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-5)


@each_side
@each_rule
def test_batches_with_and_without_dropout_are_the_equation(rule, causal):
    layout = Layout.of(LENGTHS)
    qkv, rule = sample(rule, LENGTHS)
    wanted = attention_reference(*qkv, layout, layout, causal=causal, **rule)
    for p in (0.0, DROPS_NOTHING):
        ours = attention(*qkv, layout, layout, causal=causal, dropout_p=p, **rule)
        agree(ours, wanted, qkv)


@each_side
@each_rule
def test_one_sequence_is_the_equation(rule, causal):
    layout = Layout.of([9])
    qkv, rule = sample(rule, (9,))
    wanted = attention_reference(*qkv, layout, layout, causal=causal, **rule)
    agree(attention(*qkv, layout, layout, causal=causal, **rule), wanted, qkv)


@each_rule
def test_selected_queries_get_what_all_queries_get(rule):
    layout = Layout.of(LENGTHS)
    (q, k, v), rule = sample(rule, LENGTHS)
    rows, counts = torch.tensor([0, 2, 5, 6, 13, 14, 24, 31, 34]), [2, 3, 1, 0, 2, 1]
    starts = torch.tensor(layout.starts).repeat_interleave(torch.tensor(counts))
    some = {"places": rows - starts, **rule}
    wanted = attention(q, k, v, layout, layout, **rule)[rows]
    for function in (attention, attention_reference):
        ours = function(q[rows], k, v, Layout.of(counts), layout, **some)
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@each_rule
def test_the_last_query_stands_at_the_end(rule):
    layout = Layout.of(LENGTHS)
    (q, k, v), rule = sample(rule, LENGTHS)
    last = layout.cu_seqlens[1:].long() - 1
    ones = Layout.of([1] * len(LENGTHS))
    wanted = attention(q, k, v, layout, layout, causal=True, **rule)[last]
    ours = attention(q[last], k, v, ones, layout, causal=True, **rule)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@each_side
@each_rule
def test_maps_are_the_weights(rule, causal):
    layout = Layout.of(LENGTHS)
    (q, k, v), rule = sample(rule, LENGTHS)
    maps = attention_maps(q, k, layout, layout, causal=causal, **rule)
    values = v.repeat_interleave(HEADS // v.shape[1], 1).split(LENGTHS)
    mixed = [(m @ x.transpose(0, 1)).transpose(0, 1) for m, x in zip(maps, values, strict=True)]
    wanted = attention_reference(q, k, v, layout, layout, causal=causal, **rule)
    torch.testing.assert_close(torch.cat(mixed), wanted, rtol=0, atol=1e-5)


def cached(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Packed keys or values as a cache has them, `[B, K, longest, D]`."""
    parts = [part.transpose(0, 1) for part in x.split(lengths)]
    longest = max(lengths)
    return torch.stack([torch.nn.functional.pad(p, (0, 0, 0, longest - p.shape[1])) for p in parts])


@pytest.mark.parametrize("lengths", [LENGTHS, (7, 7, 7)])
@each_rule
def test_a_step_with_a_cache_is_the_last_row(rule, lengths):
    layout = Layout.of(lengths)
    (q, k, v), rule = sample(rule, lengths)
    places = torch.tensor(lengths) - 1
    visible = None
    if len({*lengths}) > 1:
        visible = (torch.arange(max(lengths)) <= places[:, None])[:, None, None]
    last = layout.cu_seqlens[1:].long() - 1
    newest = torch.cat([q[last], q[:2]])  # two rows of padding
    keys, values = cached(k, lengths), cached(v, lengths)
    ours = attention_step(newest, keys, values, visible, places, **rule)
    wanted = attention(q, k, v, layout, layout, causal=True, **rule)[last]
    torch.testing.assert_close(ours[:-2], wanted, rtol=0, atol=1e-5)
    assert not ours[-2:].any()


@each_rule
def test_several_new_tokens_with_a_cache_are_the_last_rows(rule):
    layout, new = Layout.of(LENGTHS), (2, 4, 1, 9, 1, 3)
    (q, k, v), rule = sample(rule, LENGTHS)
    wanted = attention(q, k, v, layout, layout, causal=True, **rule)
    tails = [
        slice(end - n, end) for end, n in zip(layout.cu_seqlens[1:].tolist(), new, strict=True)
    ]
    keys, values = cached(k, LENGTHS), cached(v, LENGTHS)
    asking = torch.cat([q[tail] for tail in tails])
    ours = attention_after(asking, keys, values, Layout.of(new), LENGTHS, **rule)
    wanted = torch.cat([wanted[tail] for tail in tails])
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_a_window_by_hand():
    # One head of size 1, scores 0: each query averages what it sees.
    layout = Layout.of([4])
    nothing, v = torch.zeros(4, 1, 1), torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)
    for function in (attention, attention_reference):
        both = function(nothing, nothing, v, layout, layout, window=2)
        assert both.flatten().tolist() == pytest.approx([1.5, 2.0, 3.0, 3.5])
        causal = function(nothing, nothing, v, layout, layout, window=2, causal=True)
        assert causal.flatten().tolist() == pytest.approx([1.0, 1.5, 2.5, 3.5])


@each_side
@pytest.mark.parametrize("p", [0.0, DROPS_NOTHING])
def test_long_sequences_are_cut_into_blocks(causal, p, monkeypatch):
    monkeypatch.setattr(rules, "BLOCK", 4)
    lengths = (5, 30, 1, 17, 16, 0, 15)
    layout = Layout.of(lengths)
    qkv, rule = sample({"window": 3, "shared": SHARED}, lengths)
    wanted = attention_reference(*qkv, layout, layout, causal=causal, **rule)
    agree(attention(*qkv, layout, layout, causal=causal, dropout_p=p, **rule), wanted, qkv)
    (plan,) = layout.plans.values()
    assert max(group.key_length for group in plan.groups) < 16  # nothing of the size of a text
