from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models.attention import attention_reference
from pretune.models.layers import (
    ACTIVATIONS,
    CrossAttention,
    Dropout,
    EncoderOutput,
    FeedForward,
    GatedFeedForward,
    Linear,
    PostNormLayer,
    PreNormLayer,
    RMSNorm,
    SelfAttention,
    sinusoidal_positions,
)
from pretune.models.rope import Rope

few = settings(deadline=None, max_examples=25)


def naive_positions(count: int, hidden: int) -> list[list[float]]:
    def one(position: int, column: int) -> float:
        angle = position / 10000 ** ((column - column % 2) / hidden)
        return math.cos(angle) if column % 2 else math.sin(angle)

    return [[one(position, column) for column in range(hidden)] for position in range(count)]


@few
@given(st.integers(1, 30), st.integers(1, 33))
def test_sinusoids_are_the_formula(count, hidden):
    table = sinusoidal_positions(count, hidden)
    assert table.shape == (count, hidden)
    assert table.dtype == torch.float32
    expected = torch.tensor(naive_positions(count, hidden), dtype=torch.float64)
    torch.testing.assert_close(table.double(), expected, rtol=0, atol=1e-7)


def test_sinusoids_far_from_the_start():
    table = sinusoidal_positions(20_001, 6)[20_000]
    expected = torch.tensor(naive_positions(20_001, 6)[20_000], dtype=torch.float64)
    torch.testing.assert_close(table.double(), expected, rtol=0, atol=1e-7)


def test_sinusoids_are_real_even_on_the_meta_device():
    with torch.device("meta"):
        table = sinusoidal_positions(5, 8)
    assert table.device.type == "cpu"
    assert torch.equal(table, sinusoidal_positions(5, 8))


def phi(x: float) -> float:
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


CLOSED_FORMS = {
    "gelu": lambda x: x * phi(x),
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": silu,
    "swish": silu,
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_their_closed_forms(name):
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    expected = torch.tensor([CLOSED_FORMS[name](v) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](x), expected, rtol=0, atol=1e-12)
    single = ACTIVATIONS[name](x.float())
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-6)


def test_both_gelus_are_told_apart():
    x = torch.linspace(-4, 4, 81)
    assert (ACTIVATIONS["gelu"](x) - ACTIVATIONS["gelu_new"](x)).abs().max() > 1e-4


def test_linear_and_dropout_are_drop_in(matmul):
    ours, theirs = Linear(6, 4), nn.Linear(6, 4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(9, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    dropout = Dropout(0.5)
    assert dropout.eval()(x) is x
    dropped = dropout.train()(x)
    assert torch.equal(dropped[dropped != 0], 2 * x[dropped != 0])
    assert 0 < int((dropped == 0).sum()) < dropped.numel()


def test_feed_forward_is_the_formula():
    layer = FeedForward(6, 10, "relu")
    x = torch.randn(5, 6)
    up = (x @ layer.up.weight.T + layer.up.bias).clamp(min=0)
    torch.testing.assert_close(layer(x), up @ layer.down.weight.T + layer.down.bias)


def naive_attention(layer: SelfAttention, x: torch.Tensor, lens: list[int]) -> torch.Tensor:
    """Multi-head attention as the paper writes it: a head is a slice of the columns."""
    hidden = x.shape[1]
    size = hidden // layer.num_heads
    parts = zip(layer.qkv.weight.split(hidden), layer.qkv.bias.split(hidden), strict=True)
    q, k, v = (x @ weight.T + bias for weight, bias in parts)
    outputs = []
    for rows in torch.arange(len(x)).split(lens):
        heads = []
        for h in range(layer.num_heads):
            columns = slice(h * size, (h + 1) * size)
            scores = q[rows, columns] @ k[rows, columns].T / math.sqrt(size)
            heads.append(scores.softmax(-1) @ v[rows, columns])
        outputs.append(torch.cat(heads, 1))
    return torch.cat(outputs) @ layer.output.weight.T + layer.output.bias


def test_multi_head_attention_is_the_formula(matmul):
    torch.manual_seed(0)
    lens = [4, 1, 7]
    layout = Layout.of(lens)
    layer, x = SelfAttention(12, 3, 0.0), torch.randn(12, 12)
    expected = naive_attention(layer, x, lens)
    torch.testing.assert_close(layer(x, layout), expected, rtol=0, atol=1e-5)
    rows = torch.tensor([0, 3, 5, 11])
    some = layer(x, layout, select=Selection(rows, Layout.of([2, 0, 2])))
    torch.testing.assert_close(some, expected[rows], rtol=0, atol=1e-5)


def test_attention_dropout_only_in_training():
    torch.manual_seed(0)
    layout = Layout.of([4, 3])
    layer, x = SelfAttention(8, 2, 0.5), torch.randn(7, 8)
    assert not torch.equal(layer(x, layout), layer(x, layout))
    layer.eval()
    assert torch.equal(layer(x, layout), layer(x, layout))
    torch.testing.assert_close(layer(x, layout), naive_attention(layer, x, [4, 3]))


@pytest.mark.parametrize("selected", [False, True])
def test_a_layer_is_two_sums_and_two_norms(matmul, selected):
    torch.manual_seed(0)
    lens, layout = [4, 1, 7], Layout.of([4, 1, 7])
    layer = PostNormLayer(12, 3, 20, "gelu", dropout=0.1, attention_dropout=0.1, eps=1e-5).eval()
    for norm in (layer.attention_norm, layer.feed_forward_norm):
        nn.init.normal_(norm.weight, 1.0, 0.2)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    x = torch.randn(12, 12)
    y = layer.attention_norm(x + naive_attention(layer.attention, x, lens))
    up = y @ layer.feed_forward.up.weight.T + layer.feed_forward.up.bias
    down = nn.functional.gelu(up) @ layer.feed_forward.down.weight.T + layer.feed_forward.down.bias
    expected = layer.feed_forward_norm(y + down)
    if not selected:
        torch.testing.assert_close(layer(x, layout), expected, rtol=0, atol=1e-5)
        return
    rows = torch.tensor([0, 4, 5])
    some = layer(x, layout, select=Selection(rows, Layout.of([1, 1, 1])))
    torch.testing.assert_close(some, expected[rows], rtol=0, atol=1e-5)


def test_hidden_dropout_is_applied_to_both_sums():
    torch.manual_seed(0)
    layout, x = Layout.of([5]), torch.randn(5, 8)
    layer = PostNormLayer(8, 2, 16, "gelu", dropout=0.9, attention_dropout=0.0, eps=1e-5)
    calls = []
    for dropout in (layer.dropout_attended, layer.dropout):
        dropout.register_forward_hook(lambda *_: calls.append(1))
    assert not torch.equal(layer(x, layout), layer(x, layout))
    assert len(calls) == 4


def test_the_root_mean_square_norm_is_the_formula():
    x = torch.randn(5, 3, 6)
    for offset in (0.0, 1.0):
        norm = RMSNorm(6, 1e-3, offset)
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
        torch.testing.assert_close(norm(x), normed)  # a fresh one only norms
        nn.init.normal_(norm.weight)
        torch.testing.assert_close(norm(x), normed * (offset + norm.weight))
        half = norm(x.bfloat16())  # computed in float32
        assert half.dtype == torch.bfloat16
        wanted = norm(x.bfloat16().float()).bfloat16()
        torch.testing.assert_close(half, wanted, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("bias", [False, True])
def test_gated_feed_forward_is_the_formula(bias):
    layer, x = GatedFeedForward(6, 10, "silu", bias=bias), torch.randn(5, 6)
    weights = layer.gate_up.weight.split(10)
    biases = layer.gate_up.bias.split(10) if bias else (0.0, 0.0)
    gate, up = (x @ w.T + b for w, b in zip(weights, biases, strict=True))
    wanted = (gate * gate.sigmoid() * up) @ layer.down.weight.T + (layer.down.bias if bias else 0)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("kind", [FeedForward, GatedFeedForward])
def test_feed_forward_drops_what_goes_into_the_last_map(kind):
    layer, x, seen = kind(6, 100, "relu", bias=False, dropout=0.5), torch.randn(3, 6), []
    layer.down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(x)
    layer.eval()(x)
    dropped, whole = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * whole[kept], rtol=1e-3, atol=0)
    assert (kept != (whole != 0)).any()


def test_attention_with_everything_is_the_equation(matmul):
    torch.manual_seed(0)
    lens, layout = [4, 1, 7], Layout.of([4, 1, 7])
    positions = PackedBatch.of([[0] * n for n in lens]).positions
    rope = Rope.of({"rope_type": "default", "rope_theta": 100.0}, 6, 64)

    def bias(q: torch.Tensor, k: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        return 0.1 * distances[:, None]

    norms = {"query_norm": RMSNorm(6, 1e-5), "key_norm": RMSNorm(6, 1e-5)}
    rule = {"scale": 0.5, "window": 3, "score_bias": bias}
    some = {"num_kv_heads": 2, "head_dim": 6, "qkv_bias": False, "output_bias": False}
    layer = SelfAttention(10, 4, 0.0, **some, **rule, rope=rope, **norms)
    for norm in norms.values():
        nn.init.normal_(norm.weight)
    x, turns = torch.randn(12, 10), rope.turns(positions, layout)
    # Queries, keys and values one after another, each normed, then turned, as a complex number is.
    parts = (x @ layer.qkv.weight.T).split([24, 12, 12], 1)
    q, k, v = (part.unflatten(1, (-1, 6)) for part in parts)
    angles = positions[:, None] * 100.0 ** (-torch.arange(3) / 3)
    turned = []
    for part, norm in ((q, norms["query_norm"]), (k, norms["key_norm"])):
        pairs = (
            torch.complex(*norm(part).split(3, -1)) * torch.polar(torch.ones(()), angles)[:, None]
        )
        turned.append(torch.cat([pairs.real, pairs.imag], -1))
    mixed = attention_reference(*turned, v, layout, layout, **rule)
    wanted = mixed.flatten(1) @ layer.output.weight.T
    torch.testing.assert_close(layer(x, layout, turns=turns), wanted, rtol=0, atol=1e-5)
    # Selected rows keep their places.
    rows = torch.tensor([0, 3, 5, 11])
    chosen = layer(x, layout, select=Selection(rows, Layout.of([2, 0, 2])), turns=turns)
    torch.testing.assert_close(chosen, wanted[rows], rtol=0, atol=1e-5)
    # And the maps are of the same weights.
    maps = torch.block_diag(*(m[1] for m in layer.maps(x, layout, turns=turns)))
    torch.testing.assert_close(maps @ v[:, 0], mixed[:, 1], rtol=0, atol=1e-5)


def test_cross_attention_with_heads_of_another_width_is_the_equation():
    torch.manual_seed(0)
    targets, sources = Layout.of([2, 3]), Layout.of([4, 1])
    layer = CrossAttention(8, 2, 0.0, head_dim=3, bias=False, scale=1.0)
    x, source = torch.randn(5, 8), torch.randn(5, 8)
    q = (x @ layer.query.weight.T).view(5, 2, 3)
    k, v = (part.view(5, 2, 3) for part in (source @ layer.kv.weight.T).split(6, 1))
    mixed = attention_reference(q, k, v, targets, sources, scale=1.0).flatten(1)
    ours = layer(x, targets, EncoderOutput(source, sources))
    torch.testing.assert_close(ours, mixed @ layer.output.weight.T, rtol=0, atol=1e-5)


def test_parts_that_are_given_take_the_place_of_the_usual_ones():
    block = GatedFeedForward(8, 12, "gelu")
    layer = PreNormLayer(
        8,
        2,
        16,
        "gelu",
        dropout=0.0,
        attention_dropout=0.0,
        eps=1e-5,
        attention=SelfAttention(8, 2, 0.0, qkv_bias=False, output_bias=False),
        feed_forward=block,
        norm=lambda size: nn.LayerNorm(size, bias=False),
    )
    assert all(name.endswith("weight") for name, _ in layer.named_parameters())
    x, layout = torch.randn(5, 8), Layout.of([5])
    nn.init.normal_(layer.feed_forward_norm.weight)
    y = x + layer.attention(nn.functional.layer_norm(x, (8,)), layout)
    normed = nn.functional.layer_norm(y, (8,)) * layer.feed_forward_norm.weight
    torch.testing.assert_close(layer(x, layout), y + block(normed), rtol=0, atol=1e-5)


def test_a_shared_addition_to_the_scores_is_no_part_of_a_layer():
    table = nn.Embedding(3, 2)
    layer = SelfAttention(8, 2, 0.0, score_bias=lambda q, k, d: table(d.clamp(0, 2)).movedim(-1, 1))
    assert {name.partition(".")[0] for name, _ in layer.named_parameters()} == {"qkv", "output"}
