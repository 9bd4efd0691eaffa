from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretune.data.batch import Layout
from pretune.models import attention as module
from pretune.models.attention import (
    GROUP_SLACK,
    _make_plan,
    attention,
    attention_maps,
    attention_reference,
)

few = settings(deadline=None, max_examples=25)
lengths = st.lists(st.integers(1, 15), min_size=1, max_size=6)
sizes = st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 4, 8, 16]))  # heads, dim of each
seeds = st.integers(0, 2**32 - 1)

#: A probability that rounds to 0 of 65536: dropout's own path, which drops nothing.
DROPS_NOTHING = 1e-9


def tensors(seed: int, rows: int, size: tuple[int, int], count: int = 3, scale: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(rows, *size, generator=generator)).requires_grad_()
        for _ in range(count)
    ]


def qkv_for(seed: int, queries: Layout, keys: Layout, size: tuple[int, int]):
    (q,) = tensors(seed, queries.total, size, 1)
    k, v = tensors(seed + 1, keys.total, size, 2)
    return q, k, v


def agree(q, k, v, queries, keys, *, causal=False, dropout_p=0.0, tolerance=1e-5):
    """Values and all three gradients agree with the reference; gives back what was computed."""
    probe = torch.randn(q.shape, generator=torch.Generator().manual_seed(7))
    ours = attention(q, k, v, queries, keys, causal=causal, dropout_p=dropout_p)
    reference = attention_reference(q, k, v, queries, keys, causal=causal)
    assert ours.shape == q.shape
    torch.testing.assert_close(ours[: queries.total], reference, rtol=0, atol=tolerance)
    got = torch.autograd.grad((ours * probe).sum(), (q, k, v))
    wanted = torch.autograd.grad((reference * probe[: queries.total]).sum(), (q, k, v))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5 * tolerance)
    return ours


@st.composite
def cross(draw, causal: bool = False):
    """Two layouts: queries may be fewer or more than keys; some sequences may ask nothing."""
    key_lengths = draw(lengths)
    asking = [draw(st.integers(0, n if causal else 15)) for n in key_lengths]
    if not any(asking):
        asking[-1] = 1
    return Layout.of(asking), Layout.of(key_lengths)


@few
@given(lengths, sizes, st.booleans(), seeds)
def test_self_attention_is_the_equation(lens, size, causal, seed):
    layout = Layout.of(lens)
    q, k, v = tensors(seed, layout.total, size)
    agree(q, k, v, layout, layout, causal=causal)


@few
@given(cross(), sizes, seeds)
def test_cross_attention_is_the_equation(layouts, size, seed):
    agree(*qkv_for(seed, *layouts, size), *layouts)


@few
@given(cross(causal=True), sizes, seeds)
def test_causal_cross_attention_counts_from_the_end(layouts, size, seed):
    agree(*qkv_for(seed, *layouts, size), *layouts, causal=True)


@pytest.mark.parametrize("causal", [False, True])
@few
@given(data=st.data(), size=sizes, seed=seeds)
def test_the_path_with_dropout_is_the_equation(causal, data, size, seed):
    layouts = data.draw(cross(causal=causal))
    agree(*qkv_for(seed, *layouts, size), *layouts, causal=causal, dropout_p=DROPS_NOTHING)


@pytest.mark.parametrize("causal", [False, True])
def test_long_sequences_beside_short_ones(causal):
    layout = Layout.of([3, 540, 512, 513, 1])
    q, k, v = tensors(0, layout.total, (2, 8))
    agree(q, k, v, layout, layout, causal=causal)


@pytest.mark.parametrize("lens", [[7, 7, 7], [7]])
def test_sequences_of_the_same_length_are_not_copied(lens, monkeypatch):
    layout = Layout.of(lens)
    taken = []
    sdpa = F.scaled_dot_product_attention

    def watched(*qkv, **options):
        taken.extend(x.data_ptr() for x in qkv)
        assert options == {"is_causal": True, "scale": None}  # and no mask
        return sdpa(*qkv, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q, k, v = (x.detach() for x in tensors(0, layout.total, (2, 4)))
    attention(q, k, v, layout, layout, causal=True)
    assert taken == [x.data_ptr() for x in (q, k, v)]


@few
@given(lengths, sizes, seeds, st.data())
def test_selected_queries_get_what_all_queries_get(lens, size, seed, data):
    layout = Layout.of(lens)
    q, k, v = tensors(seed, layout.total, size)
    chosen = data.draw(
        st.lists(st.integers(0, layout.total - 1), min_size=1, unique=True).map(sorted)
    )
    rows = torch.tensor(chosen)
    ends = layout.cu_seqlens.tolist()
    counts = [sum(start <= row < end for row in chosen) for start, end in itertools.pairwise(ends)]
    some = attention(q[rows], k, v, Layout.of(counts), layout)
    torch.testing.assert_close(some, attention(q, k, v, layout, layout)[rows], rtol=0, atol=1e-5)


def test_a_sequence_of_one_token_gets_its_own_value():
    layout = Layout.of([1, 1, 1])
    q, k, v = tensors(0, 3, (2, 4))
    assert torch.equal(attention(q, k, v, layout, layout), v)


@few
@given(lengths, st.integers(1, 9), st.booleans(), seeds)
def test_rows_past_the_total_are_zeros_and_are_not_looked_at(lens, extra, causal, seed):
    layout = Layout.of(lens)
    q, k, v = tensors(seed, layout.total + extra, (2, 4))
    with torch.no_grad():
        for x in (q, k, v):
            x[layout.total :] = float("nan")
    ours = attention(q, k, v, layout, layout, causal=causal)
    assert torch.equal(ours[layout.total :], torch.zeros(extra, 2, 4))
    short = [x[: layout.total] for x in (q, k, v)]
    torch.testing.assert_close(
        ours[: layout.total], attention_reference(*short, layout, layout, causal=causal)
    )
    for gradient in torch.autograd.grad(ours.sum(), (q, k, v)):
        assert torch.equal(gradient[layout.total :], torch.zeros(extra, 2, 4))


@pytest.mark.parametrize("dropout_p", [0.0, DROPS_NOTHING])
@few
@given(st.lists(st.integers(1, 12), min_size=2, max_size=7), st.booleans(), seeds, st.data())
def test_no_query_sees_another_sequence(dropout_p, lens, causal, seed, data):
    # NaN is the strictest witness: 0 * NaN is NaN, so not even a weight of zero may touch it.
    layout = Layout.of(lens)
    victim = data.draw(st.integers(0, len(lens) - 1))
    rows = slice(layout.starts[victim], layout.starts[victim] + lens[victim])
    others = torch.ones(layout.total, dtype=torch.bool)
    others[rows] = False
    q, k, v = tensors(seed, layout.total, (2, 4))
    spoiled = [x.detach().clone() for x in (q, k, v)]
    for x in spoiled:
        x[rows] = float("nan")
    before = attention(q, k, v, layout, layout, causal=causal, dropout_p=dropout_p)
    after = attention(*spoiled, layout, layout, causal=causal, dropout_p=dropout_p)
    assert torch.equal(before[others], after[others])
    assert after[rows].isnan().all()
    for gradient in torch.autograd.grad(before[rows].sum(), (q, k, v)):
        assert torch.equal(gradient[others], torch.zeros_like(gradient[others]))
        assert not torch.equal(gradient[rows], torch.zeros_like(gradient[rows])) or lens[victim] < 2


@few
@given(lengths, sizes, seeds, st.randoms(use_true_random=False))
def test_the_order_of_sequences_does_not_matter(lens, size, seed, random):
    layout = Layout.of(lens)
    parts = [tensors(seed + i, n, size) for i, n in enumerate(lens)]
    order = list(range(len(lens)))
    random.shuffle(order)
    shuffled = Layout.of([lens[i] for i in order])
    straight = attention(*map(torch.cat, zip(*parts, strict=True)), layout, layout)
    mixed = attention(
        *map(torch.cat, zip(*(parts[i] for i in order), strict=True)), shuffled, shuffled
    )
    pieces = mixed.split(list(shuffled.lengths))
    back = torch.cat([pieces[order.index(i)] for i in range(len(lens))])
    torch.testing.assert_close(back, straight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_agrees_with_torch_on_a_padded_batch(causal):
    lens, (heads, dim) = [5, 17, 1, 9], (3, 8)
    layout = Layout.of(lens)
    q, k, v = tensors(0, layout.total, (heads, dim))
    longest = max(lens)
    padded = [
        torch.stack([F.pad(part, (0, 0, 0, 0, 0, longest - len(part))) for part in x.split(lens)])
        for x in (q, k, v)
    ]
    column = torch.arange(longest)
    mask = (column < torch.tensor(lens)[:, None])[:, None, None, :]
    if causal:
        mask = mask & (column <= column[:, None])
    theirs = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in padded), attn_mask=mask)
    theirs = torch.cat([theirs[i, :, :n].transpose(0, 1) for i, n in enumerate(lens)])
    ours = attention(q, k, v, layout, layout, causal=causal)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    probe = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * probe).sum(), (q, k, v)),
        torch.autograd.grad((theirs * probe).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


def test_large_scores_do_not_overflow():
    layout = Layout.of([3, 2])
    q, k, v = tensors(0, 5, (1, 4))
    ours = attention(1e6 * q, k, v, layout, layout)  # as good as a choice of one key
    scores = torch.einsum("qhd,khd->qk", q, k)
    same = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).bool()
    best = scores.masked_fill(~same, float("-inf")).argmax(1)
    torch.testing.assert_close(ours, v[best], rtol=0, atol=1e-6)


def test_the_reference_by_hand():
    # Two tokens, one head of size 1: softmax([0, ln 3]) = [1/4, 3/4] for the second query.
    layout = Layout.of([2])
    q = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    k = torch.tensor([0.0, math.log(3.0)]).view(2, 1, 1)
    v = torch.tensor([8.0, 4.0]).view(2, 1, 1)
    for function in (attention, attention_reference):
        assert function(q, k, v, layout, layout).flatten().tolist() == pytest.approx([6.0, 5.0])
        causal = function(q, k, v, layout, layout, causal=True)
        assert causal.flatten().tolist() == pytest.approx([8.0, 5.0])


def test_layouts_that_do_not_fit_are_refused():
    q, k, v = tensors(0, 4, (1, 2))
    with pytest.raises(ValueError, match="1 query sequences, 2 key sequences"):
        attention(q, k, v, Layout.of([4]), Layout.of([2, 2]))
    with pytest.raises(ValueError, match="sequence 0: 2 queries, but only 0 keys"):
        attention(q, k, v, Layout.of([2, 2]), Layout.of([0, 4]))
    with pytest.raises(ValueError, match="sequence 1: 3 queries, but only 1 keys"):
        attention(q, k, v, Layout.of([1, 3]), Layout.of([3, 1]), causal=True)
    assert attention(q, k, v, Layout.of([1, 3]), Layout.of([3, 1])).isfinite().all()


def test_an_empty_batch_and_empty_sequences():
    empty = Layout.of([])
    nothing = torch.empty(0, 2, 4)
    assert attention(nothing, nothing, nothing, empty, empty).shape == (0, 2, 4)
    layout = Layout.of([0, 3, 0, 2, 0])
    q, k, v = tensors(0, 5, (2, 4))
    agree(q, k, v, layout, layout)


def test_sequences_of_like_length_share_a_group():
    layout = Layout.of([100, 7, 101, 7, 102, 7])
    plan = _make_plan(layout, layout, torch.device("cpu"))
    assert [(group.size, group.key_length) for group in plan.groups] == [(3, 7), (3, 102)]
    apart = Layout.of([1, 1 + GROUP_SLACK + 1])
    assert len(_make_plan(apart, apart, torch.device("cpu")).groups) == 2


def test_batches_that_come_longest_first_stay_in_their_order():
    for order, restores in (([30, 30, 9, 8, 8], False), ([8, 30, 9], True)):
        layout = Layout.of(order)
        with torch.inference_mode():
            plan = _make_plan(layout, layout, torch.device("cpu"))
        assert (plan.restore is not None) == restores


def test_training_goes_from_the_shortest_to_the_longest():
    layout = Layout.of([30, 9, 8])
    plan = _make_plan(layout, layout, torch.device("cpu"))
    assert [group.key_length for group in plan.groups] == [9, 30]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("longest", "keys"), [(13, 16), (8, 16), (7, 7), (31, 32), (17, 17)])
def test_keys_fill_the_vectors_of_the_processor(longest, keys, causal, monkeypatch):
    monkeypatch.setattr(module, "_lanes", lambda device: 16)
    layout = Layout.of([longest, longest - 1, longest])
    assert [g.key_length for g in _make_plan(layout, layout, torch.device("cpu")).groups] == [keys]
    agree(*tensors(0, layout.total, (2, 4)), layout, layout, causal=causal)


def test_training_draws_as_many_numbers_on_every_processor(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    layout, device = Layout.of([13, 12]), torch.device("cpu")
    assert [group.key_length for group in _make_plan(layout, layout, device).groups] == [13]
    with torch.inference_mode():
        assert [group.key_length for group in _make_plan(layout, layout, device).groups] == [16]


def test_one_plan_serves_all_layers():
    layout = Layout.of([3, 5])
    q, k, v = tensors(0, 8, (1, 2))
    attention(q, k, v, layout, layout)
    attention(q, k, v, layout, layout, causal=True)
    assert len(layout.plans) == 1
    other = Layout.of([4, 4])
    agree(q, k, v, layout, other)  # not mistaken for the plan of self-attention
    assert len(layout.plans) == 2


# Dropout


def test_sequences_of_one_length_are_neither_cut_nor_gathered():
    layout = Layout.of([6, 6, 6])
    q, k, v = qkv_for(0, layout, layout, (2, 8))
    agree(q, k, v, layout, layout, causal=True)
    waiting, seen = [attention(q, k, v, layout, layout, causal=True).grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None:
            seen.add(node.name())
            waiting += [previous for previous, _ in node.next_functions]
    assert not {name for name in seen if "Slice" in name or "Index" in name or "Cat" in name}
    assert any("ScaledDotProduct" in name for name in seen)


def test_no_dropout_draws_nothing():
    layout = Layout.of([3, 9])
    q, k, v = tensors(0, 12, (2, 4))
    torch.manual_seed(0)
    first = attention(q, k, v, layout, layout, dropout_p=0.0)
    assert torch.equal(first, attention(q, k, v, layout, layout))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("lens", [[3, 9, 9], [520]])
def test_the_seed_decides_what_is_dropped(lens):
    layout = Layout.of(lens)
    q, k, v = tensors(0, layout.total, (2, 4))

    def draw(seed: int):
        torch.manual_seed(seed)
        return attention(q, k, v, layout, layout, dropout_p=0.5)

    first = draw(1)
    assert torch.equal(first, draw(1))
    assert not torch.allclose(first, draw(2))
    assert not torch.allclose(first, attention(q, k, v, layout, layout))


def dropout_statistics(q, k, v, copies: int, p: float, **options):
    """Mean and variance over many draws of one sequence, with what they should be."""
    length = len(q)
    once, many = Layout.of([length]), Layout.of([length] * copies, q.device)
    repeated = [x.repeat(copies, 1, 1) for x in (q, k, v)]
    torch.manual_seed(0)
    draws = attention(*repeated, many, many, dropout_p=p, **options)
    draws = draws.float().view(copies, *q.shape)
    (weights,) = attention_maps(q.float(), k.float(), once, once, **options)
    squares = torch.einsum("hqk,khd->qhd", weights.square(), v.float().square())
    expected = attention_reference(q.float(), k.float(), v.float(), once, once, **options)
    return draws.mean(0), draws.var(0), expected, squares * p / (1 - p)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_the_expectation(p, causal):
    q, k, v = (x.detach() for x in tensors(3, 6, (2, 3)))
    copies = 20_000
    mean, variance, expected, spread = dropout_statistics(q, k, v, copies, p, causal=causal)
    # Six standard errors for each of 36 means: wrong once in 10 million seeds.
    assert ((mean - expected).abs() <= 6 * (spread / copies).sqrt() + 1e-6).all()
    torch.testing.assert_close(variance, spread, rtol=0.1, atol=1e-5)


def test_dropout_gradients_use_the_mask_of_the_forward_pass():
    # The output is linear in v, so with the same mask its gradient times v gives it back.
    layout = Layout.of([5, 3, 5])
    q, k, v = tensors(0, 13, (2, 4))
    torch.manual_seed(5)
    dropped = attention(q, k, v, layout, layout, dropout_p=0.4)
    (gradient,) = torch.autograd.grad(dropped.sum(), v)
    torch.testing.assert_close((gradient * v).sum(), dropped.sum(), rtol=1e-5, atol=1e-4)


# Maps


@few
@given(cross(causal=True), sizes, st.booleans(), seeds)
def test_maps_sum_to_one_and_mix_the_values(layouts, size, causal, seed):
    queries, keys = layouts
    q, k, v = qkv_for(seed, queries, keys, size)
    maps = attention_maps(q, k, queries, keys, causal=causal)
    assert [tuple(m.shape) for m in maps] == [
        (size[0], a, b) for a, b in zip(queries.lengths, keys.lengths, strict=True)
    ]
    mixed = []
    for weights, value in zip(maps, v.split(list(keys.lengths)), strict=True):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert (weights >= 0).all()
        if causal:
            later = weights.shape[2] - weights.shape[1] + 1
            assert torch.equal(weights.triu(later), torch.zeros_like(weights))
        mixed.append(torch.einsum("hqk,khd->qhd", weights, value))
    ours = attention(q, k, v, queries, keys, causal=causal)
    torch.testing.assert_close(torch.cat(mixed), ours, rtol=0, atol=1e-5)


# CUDA

cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def on_cuda(layout: Layout) -> Layout:
    return Layout.of(layout.lengths, "cuda")


class TestCuda:
    pytestmark = cuda
    lens = (17, 1, 64, 33, 130)

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_varlen_is_the_equation(self, dtype, causal):
        layout = Layout.of(self.lens)
        exact = tensors(0, layout.total, (4, 32))
        half = [x.detach().to("cuda", dtype).requires_grad_() for x in exact]
        exact = [x.detach().cpu().float().requires_grad_() for x in half]
        there = on_cuda(layout)
        ours = attention(*half, there, there, causal=causal)
        theirs = attention_reference(*exact, layout, layout, causal=causal)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.cpu().float(), theirs, rtol=0, atol=2e-2)
        probe = torch.randn_like(theirs)
        got = torch.autograd.grad((ours * probe.to(ours)).sum(), half)
        wanted = torch.autograd.grad((theirs * probe).sum(), exact)
        for mine, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine.cpu().float(), other, rtol=2e-2, atol=2e-2)

    def test_selected_queries_and_rows_past_the_total(self):
        keys, queries = Layout.of(self.lens), Layout.of([1, 0, 5, 33, 2])
        (q,) = tensors(0, queries.total + 3, (4, 32), 1)
        k, v = tensors(1, keys.total + 5, (4, 32), 2)
        half = [x.detach().to("cuda", torch.bfloat16) for x in (q, k, v)]
        ours = attention(*half, on_cuda(queries), on_cuda(keys)).cpu().float()
        exact = [x.cpu().float() for x in half]
        theirs = attention_reference(*exact, queries, keys)
        torch.testing.assert_close(ours[: queries.total], theirs, rtol=0, atol=2e-2)
        assert torch.equal(ours[queries.total :], torch.zeros(3, 4, 32))

    @pytest.mark.parametrize("causal", [False, True])
    def test_float32_is_the_equation(self, causal):
        layout = Layout.of(self.lens)
        q, k, v = (x.detach() for x in tensors(0, layout.total, (4, 32)))
        there = on_cuda(layout)
        ours = attention(q.cuda(), k.cuda(), v.cuda(), there, there, causal=causal)
        theirs = attention_reference(q, k, v, layout, layout, causal=causal)
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("causal", [False, True])
    def test_dropout_keeps_the_expectation(self, causal):
        q, k, v = (x.detach().to("cuda", torch.bfloat16) for x in tensors(3, 8, (2, 16)))
        copies, p = 20_000, 0.3
        statistics = dropout_statistics(q, k, v, copies, p, causal=causal)
        mean, variance, expected, spread = statistics
        assert ((mean - expected).abs() <= 6 * (spread / copies).sqrt() + 1e-2).all()
        torch.testing.assert_close(variance, spread, rtol=0.15, atol=1e-3)

    def test_the_seed_decides_what_is_dropped(self):
        layout = on_cuda(Layout.of(self.lens))
        half = [x.detach().to("cuda", torch.bfloat16) for x in tensors(0, layout.total, (4, 32))]
        torch.manual_seed(1)
        first = attention(*half, layout, layout, dropout_p=0.5)
        torch.manual_seed(1)
        assert torch.equal(first, attention(*half, layout, layout, dropout_p=0.5))
        assert not torch.equal(first, attention(*half, layout, layout, dropout_p=0.5))
