from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pretune.data.batch import Layout, PackedBatch
from pretune.errors import CheckpointError
from pretune.models.rope import Rope, read_rope_parameters

DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}


def turned(rope: Rope, x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    batch = PackedBatch.of([[0] * n for n in lengths])
    return rope.turns(batch.positions, batch.layout).turn(x)


def test_pairs_are_turned_as_complex_numbers():
    rope, x = Rope.of(DEFAULT, 8, 64), torch.randn(5, 2, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :4], x[..., 4:])
    rates = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = torch.tensor([0.0, 1, 2, 0, 1])[:, None, None] * rates
    wanted = pairs * torch.polar(torch.ones_like(angles), angles)
    ours = turned(rope, x, [3, 2])
    torch.testing.assert_close(ours, torch.cat([wanted.real, wanted.imag], -1), rtol=0, atol=1e-6)


def test_products_depend_on_the_distance_alone():
    rope, layout = Rope.of(DEFAULT, 8, 64), Layout.of([10])
    turns = rope.turns(torch.arange(10), layout)
    q, k = (torch.randn(1, 1, 8).expand(10, 1, 8) for _ in range(2))
    scores = (turns.turn(q)[:, 0] @ turns.turn(k)[:, 0].T).diagonal(2)
    torch.testing.assert_close(scores, scores[:1].expand(8), rtol=0, atol=1e-5)


def test_only_a_part_of_a_head_is_turned():
    x = torch.randn(3, 1, 8)
    ours = turned(Rope.of({**DEFAULT, "partial_rotary_factor": 0.5}, 8, 64), x, [3])
    assert torch.equal(ours[..., 4:], x[..., 4:])
    whole = turned(Rope.of(DEFAULT, 4, 64), x[..., :4], [3])
    torch.testing.assert_close(ours[..., :4], whole)


@pytest.mark.parametrize("part", [1.0, 0.5])
def test_the_gradient_is_turned_back(part):
    rope = Rope.of({**DEFAULT, "partial_rotary_factor": part}, 8, 64)
    turns = rope.turns(torch.arange(5), Layout.of([5]))
    x = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(turns.turn, (x,))
    with torch.no_grad():
        assert torch.equal(turns.turn(x), turns.turn(x.requires_grad_()))


def test_rates_are_real_even_on_the_meta_device():
    with torch.device("meta"):
        rope = Rope.of({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}, 8, 64)
    assert rope.rates.device.type == "cpu"


KINDS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.3,
        "beta_fast": 16,
        "beta_slow": 2,
        "truncate": False,
    },
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["rope_type"])
@pytest.mark.parametrize("longest", [20, 100])
def test_every_kind_is_transformers(kind, longest):
    config = transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5_000.0, **kind},
    )
    wanted, scaling = ROPE_INIT_FUNCTIONS[kind["rope_type"]](config, seq_len=torch.tensor(longest))
    ours = Rope.of({"rope_theta": 5_000.0, **kind}, 16, 64)
    turns = ours.turns(torch.arange(longest), Layout.of([longest]))
    angles = torch.arange(longest)[:, None].float() * wanted
    torch.testing.assert_close(turns.cos[:, 0, :8], angles.cos() * scaling, rtol=0, atol=1e-6)
    torch.testing.assert_close(turns.sin[:, 0, 8:], angles.sin() * scaling, rtol=0, atol=1e-6)


def test_dynamic_rates_are_those_of_each_sequence():
    rope, lengths = (
        Rope.of({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, 8, 4),
        [9, 3],
    )
    batch = PackedBatch.of([[0] * n for n in lengths])
    both = rope.turns(batch.positions, batch.layout).cos.split(lengths)
    for own, length in zip(both, lengths, strict=True):
        alone = rope.turns(torch.arange(length), Layout.of([length])).cos
        assert torch.equal(own, alone)
    assert not torch.equal(both[0][:3], both[1])


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "longrope", "rope_theta": 1e4}, "'longrope'"),
        ({"rope_type": ["x"], "rope_theta": 1e4}, "rope_type"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "factor"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": "x"}, "factor"),
        ({"rope_type": "default"}, "rope_theta"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.1}, "0 dimensions"),
        ({"rope_type": "default", "rope_theta": math.inf}, "rope_theta"),
        (
            {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 2,
                "low_freq_factor": 4,
                "high_freq_factor": 1,
            },
            "high_freq_factor",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(parameters, named):
    with pytest.raises(CheckpointError, match=named):
        Rope.of(parameters, 8, 64)


def test_older_files_say_it_otherwise():
    scaling = {"type": "linear", "factor": 2.0}
    wanted = {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0}
    assert read_rope_parameters({"rope_theta": 5.0, "rope_scaling": scaling}, 1e4) == wanted
    assert read_rope_parameters({"rope_parameters": wanted}, 1e4) == wanted
    assert read_rope_parameters({"rope_scaling": None}, 1e4) == DEFAULT
    with pytest.raises(CheckpointError, match="rope_parameters"):
        read_rope_parameters({"rope_scaling": 3}, 1e4)


def test_kinds_of_layers_have_positions_of_their_own():
    kinds = ("full_attention", "sliding_attention")
    nested = {"full_attention": {"rope_theta": 7.0}, "sliding_attention": {}}
    both = read_rope_parameters({"rope_parameters": nested, "rope_theta": 9.0}, 1e4, kinds)
    assert {kind: entry["rope_theta"] for kind, entry in both.items()} == {
        "full_attention": 7.0,
        "sliding_attention": 9.0,
    }
    same = read_rope_parameters({"rope_theta": 9.0}, 1e4, kinds)
    assert same["full_attention"] == same["sliding_attention"]
