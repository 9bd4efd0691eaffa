from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.bert import BertConfig, BertModel

TINY = BertConfig(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=40,
    initializer_range=0.2,
)
few = settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
lengths = st.lists(st.integers(1, 20), min_size=2, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def build(seed: int = 0, **changes) -> BertModel:
    torch.manual_seed(seed)
    model = BertModel(dataclasses.replace(TINY, **changes)).eval()
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def sequences(lens: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(50, (n,), generator=generator).tolist() for n in lens]


def segments_of(lens: list[int]) -> list[list[int]]:
    return [[int(i > n // 2) for i in range(n)] for n in lens]


def run_to_embeddings(model: BertModel, batch: PackedBatch):
    """The output and the tensor that the embeddings handed to the first layer."""
    seen = []
    hook = model.embeddings.register_forward_hook(lambda *call: seen.append(call[2]))
    output = model(batch)
    hook.remove()
    return output, seen[0]


# Sequences do not see each other


@pytest.mark.parametrize("scale", [1, 25])  # 25: more than 4 * ROW_TILE rows, so padded ones too
@few
@given(lengths, seeds, st.data())
def test_no_token_sees_another_sequence(matmul, scale, lens, seed, data):
    lens = [*lens, *[20] * (scale - 1)]
    model, ids = build(seed), sequences(lens, seed)
    changed = data.draw(st.integers(0, len(lens) - 1))
    before = model(PackedBatch.of(ids)).last_hidden_state.split(lens)
    ids[changed] = [(i + 7) % 50 for i in ids[changed]]
    after = model(PackedBatch.of(ids)).last_hidden_state.split(lens)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (i != changed)


@few
@given(lengths, seeds, st.data())
def test_a_batch_is_its_sequences_one_at_a_time(matmul, lens, seed, data):
    # Company of another length changes how rows are grouped and padded: only rounding may differ.
    model, ids = build(seed), sequences(lens, seed)
    together = model(PackedBatch.of(ids))
    i = data.draw(st.integers(0, len(lens) - 1))
    alone = model(PackedBatch.of([ids[i]]))
    mine = together.last_hidden_state.split(lens)[i]
    torch.testing.assert_close(mine, alone.last_hidden_state, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.pooler_output[i : i + 1], alone.pooler_output)


@few
@given(lengths, seeds, st.data())
def test_no_gradient_reaches_another_sequence(matmul, lens, seed, data):
    model = build(seed)
    output, embedded = run_to_embeddings(model, PackedBatch.of(sequences(lens, seed)))
    mine = data.draw(st.integers(0, len(lens) - 1))
    probe = torch.randn(lens[mine], 24)
    loss = (output.last_hidden_state.split(lens)[mine] * probe).sum()
    (gradient,) = torch.autograd.grad(loss, embedded)
    for i, part in enumerate(gradient.split(lens)):
        assert torch.equal(part, torch.zeros_like(part)) == (i != mine)


# Selection


def gradients(model: BertModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for name, p, g in zip(names, parameters, grads, strict=True)
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("scale", [1, 25])
@few
@given(lengths, seeds, st.integers(1, 3))
def test_the_first_tokens_alone_give_the_same(matmul, scale, lens, seed, layers):
    lens = [*lens, *[20] * (scale - 1)]
    model = build(seed, num_hidden_layers=layers)
    batch = PackedBatch.of(sequences(lens, seed), segments_of(lens))
    full, first = model(batch), model(batch, select=batch.first)
    torch.testing.assert_close(first.pooler_output, full.pooler_output, rtol=0, atol=1e-5)
    expected = full.last_hidden_state[batch.first.rows]
    torch.testing.assert_close(first.last_hidden_state, expected, rtol=0, atol=1e-5)
    probe = torch.randn_like(full.pooler_output)
    same(
        gradients(model, (first.pooler_output * probe).sum()),
        gradients(model, (full.pooler_output * probe).sum()),
        atol=2e-5 * scale**0.5,
    )


@few
@given(lengths, seeds, st.data())
def test_any_selection_gives_the_same(matmul, lens, seed, data):
    model, batch = build(seed), PackedBatch.of(sequences(lens, seed))
    counts = [data.draw(st.integers(0, n)) for n in lens]
    starts = batch.layout.starts
    rows = [starts[i] + lens[i] - count + j for i, count in enumerate(counts) for j in range(count)]
    selection = Selection(torch.tensor(rows, dtype=torch.int64), Layout.of(counts))
    some, full = model(batch, select=selection), model(batch)
    assert some.pooler_output is None
    expected = full.last_hidden_state[selection.rows]
    torch.testing.assert_close(some.last_hidden_state, expected, rtol=0, atol=1e-5)
    probe = torch.randn_like(expected)
    same(
        gradients(model, (some.last_hidden_state * probe).sum()),
        gradients(model, (expected * probe).sum()),
        atol=2e-5,
    )


# Outputs


def test_all_hidden_states_and_maps_on_request():
    lens = [5, 2, 9]
    model, batch = build(num_hidden_layers=3), PackedBatch.of(sequences([5, 2, 9]))
    plain = model(batch)
    assert plain.hidden_states is None
    assert plain.attentions is None
    output = model(batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(16, 24)] * 4
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
    assert torch.equal(output.hidden_states[0], model.embeddings(batch))
    assert len(output.attentions) == 3
    for maps in output.attentions:
        assert [tuple(m.shape) for m in maps] == [(3, n, n) for n in lens]
        for weights in maps:
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize("wanted", ["output_hidden_states", "output_attentions"])
def test_all_rows_and_some_rows_exclude_each_other(wanted):
    batch = PackedBatch.of(sequences([3]))
    with pytest.raises(ValueError, match="leave out `select`"):
        build()(batch, select=batch.first, **{wanted: True})


def test_padded_rows_do_not_show():
    lens = [20] * 13 + [3]  # 263 rows: padded to 320 on the oneDNN path
    model, batch = build(), PackedBatch.of(sequences([20] * 13 + [3]))
    output = model(batch, output_hidden_states=True, output_attentions=True)
    assert len(output.last_hidden_state) == sum(lens)
    assert all(len(h) == sum(lens) for h in output.hidden_states)
    assert all(len(maps) == len(lens) for maps in output.attentions)


def test_the_pooler_is_tanh_of_a_dense_layer_on_the_first_token():
    model, batch = build(), PackedBatch.of(sequences([4, 6]))
    output = model(batch)
    first = output.last_hidden_state[[0, 4]]
    expected = torch.tanh(first @ model.pooler.weight.T + model.pooler.bias)
    torch.testing.assert_close(output.pooler_output, expected)
    torch.manual_seed(0)
    bare = BertModel(TINY, pooler=False)
    assert bare(batch).pooler_output is None
    assert bare(batch, select=batch.first).pooler_output is None


def test_without_segments_all_are_segment_zero():
    model, ids = build(), sequences([4, 6])
    zeros = model(PackedBatch.of(ids, [[0] * 4, [0] * 6]))
    none = model(PackedBatch.of(ids))
    torch.testing.assert_close(none.last_hidden_state, zeros.last_hidden_state)
    ones = model(PackedBatch.of(ids, [[1] * 4, [1] * 6]))
    assert not torch.allclose(zeros.last_hidden_state, ones.last_hidden_state, atol=1e-2)


def test_an_empty_batch():
    output = build()(PackedBatch.of([]))
    assert output.last_hidden_state.shape == (0, 24)
    assert output.pooler_output.shape == (0, 24)


@pytest.mark.parametrize("positions", ["absolute", "sinusoidal"])
@pytest.mark.parametrize("ids", [[1, 50], [-1, 2], [1] * 41])
def test_ids_and_lengths_out_of_range_raise_on_the_cpu(ids, positions):
    with pytest.raises(IndexError):
        build(position_embedding_type=positions)(PackedBatch.of([ids]))


# Sinusoidal positions


def test_sinusoidal_positions_are_used_and_not_saved():
    model, ids = build(position_embedding_type="sinusoidal"), sequences([4, 6])
    assert not any("positions" in name or "sinusoids" in name for name in model.state_dict())
    batch = PackedBatch.of(ids)
    embeddings = model.embeddings
    x = embeddings.tokens(batch.tokens) + embeddings.segments.weight[0]
    x = x + embeddings.sinusoids[batch.positions]
    torch.testing.assert_close(embeddings(batch), embeddings.norm(x))
    assert not torch.allclose(model(PackedBatch.of([[3, 3]])).last_hidden_state[0], x[0])
    twice = model(PackedBatch.of([[3, 3]])).last_hidden_state
    assert not torch.allclose(twice[0], twice[1], atol=1e-3)


def test_a_model_built_on_the_meta_device_has_its_sinusoids():
    with torch.device("meta"):
        model = BertModel(dataclasses.replace(TINY, position_embedding_type="sinusoidal")).eval()
    twin = build(position_embedding_type="sinusoidal")
    model.load_state_dict(twin.state_dict(), assign=True)
    batch = PackedBatch.of(sequences([4, 6]))
    assert torch.equal(model(batch).last_hidden_state, twin(batch).last_hidden_state)


# Dropout


def test_training_without_dropout_is_evaluation(matmul):
    model = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = PackedBatch.of(sequences([5, 9]))
    expected = model(batch)
    output = model.train()(batch)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("which", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_each_dropout_counts_in_training_only(which):
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model, batch = build(**(off | {which: 0.5})), PackedBatch.of(sequences([5, 9]))
    expected = model(batch).last_hidden_state
    assert torch.equal(model(batch).last_hidden_state, expected)
    model.train()
    torch.manual_seed(0)
    first = model(batch).last_hidden_state
    assert not torch.allclose(first, expected)
    assert not torch.allclose(first, model(batch).last_hidden_state)
    torch.manual_seed(0)
    assert torch.equal(first, model(batch).last_hidden_state)


def test_each_dropout_is_where_the_configuration_says():
    model = build(hidden_dropout_prob=0.25, attention_probs_dropout_prob=0.5)
    assert model.embeddings.dropout.p == 0.25
    assert [layer.dropout.p for layer in model.layers] == [0.25, 0.25]
    assert [layer.attention.dropout for layer in model.layers] == [0.5, 0.5]


# Sizes and fresh weights


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_bert_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = BertModel(BertConfig())
    assert count(model.embeddings) == 23_837_184
    assert count(model.layers) == 85_054_464
    assert count(model.pooler) == 590_592
    assert count(model) == 109_482_240


def test_fresh_weights_are_berts():
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=2000,
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=512,
            type_vocab_size=40,
            max_position_embeddings=128,
            initializer_range=0.05,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            deviation = 0.05 / (2 * parameter.numel()) ** 0.5
            assert abs(parameter.std().item() - 0.05) < 5 * deviation, name
            assert abs(parameter.mean().item()) < 5 * 0.05 / parameter.numel() ** 0.5, name
            assert parameter.abs().max() > 3 * 0.05, name  # not cut off


def test_fresh_weights_for_one_part_leave_the_rest():
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.init_weights(model.pooler)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"pooler.weight", "pooler.bias"}


# Configuration


def test_the_configuration_survives_a_round_trip():
    values = TINY.to_dict()
    assert values["model_type"] == "bert"
    assert BertConfig.from_dict(values) == TINY
    more = values | {"id2label": {"0": "no"}, "torch_dtype": "float16", "hidden_act": None}
    assert BertConfig.from_dict(more) == TINY
    assert BertConfig.from_dict({}) == BertConfig()


SIZES = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [0, -1, 10**8, 10**30, 2.0, 2.5, "2", True, [2], float("nan")])
def test_sizes_that_make_no_sense(name, value):
    with pytest.raises(CheckpointError, match=f"{name} must be a whole number"):
        BertConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 10, "num_attention_heads": 3}, "10 is not divisible by"),
        ({"num_hidden_layers": 1001}, "from 1 to 1,000, not 1001"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be in"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob must be a number"),
        ({"attention_probs_dropout_prob": 1}, "attention_probs_dropout_prob must be in"),
        ({"attention_probs_dropout_prob": "0.1"}, "attention_probs_dropout_prob must be a number"),
        ({"attention_probs_dropout_prob": float("nan")}, "must be a number from 0 to 1"),
        ({"hidden_dropout_prob": True}, "hidden_dropout_prob must be a number"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must be a number"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps must be a number"),
        ({"initializer_range": -0.02}, "initializer_range must be a number"),
        ({"pad_token_id": "0"}, "pad_token_id must be a whole number"),
        ({"hidden_act": "gleu"}, "the activation hidden_act 'gleu' is unknown here\n  Known: gelu"),
        ({"hidden_act": ["gelu"]}, "the activation hidden_act .* is unknown here"),
        ({"hidden_act": "quick"}, "Known: gelu, gelu_new"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is unknown here"),
        ({"position_embedding_type": ["absolute"]}, "Supported: absolute, sinusoidal"),
        ({"is_decoder": True}, "is_decoder is set"),
        (
            {
                "position_embedding_type": "sinusoidal",
                "max_position_embeddings": 10**6,
                "hidden_size": 1200,
            },
            "more than 64 MiB",
        ),
    ],
)
def test_values_that_make_no_sense(changes, message):
    with pytest.raises(CheckpointError, match=message):
        BertConfig.from_dict(changes)


def test_zero_dropout_as_a_whole_number_is_fine():
    config = BertConfig.from_dict({"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0})
    assert config.hidden_dropout_prob == 0
    assert BertConfig.from_dict({"is_decoder": False}) == BertConfig()
