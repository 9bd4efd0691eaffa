"""The encoder-decoder beside torch's own, and its cache beside computing all anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.errors import CheckpointError
from pretune.models.layers import sinusoidal_positions
from pretune.models.resize import resize_vocabulary
from pretune.models.transformer import TransformerConfig, TransformerModel, Translator

VOCABULARY, SIZE, HEADS, INNER = 37, 24, 4, 40
PAIRS = [((7, 3)), ((1, 5)), ((12, 1)), ((4, 9)), ((7, 4))]
Pair = tuple[list[int], list[int]]


def config_of(**more: object) -> TransformerConfig:
    return TransformerConfig.from_dict(
        {
            "vocab_size": VOCABULARY,
            "d_model": SIZE,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "encoder_attention_heads": HEADS,
            "decoder_attention_heads": HEADS,
            "encoder_ffn_dim": INNER,
            "decoder_ffn_dim": INNER,
            "activation_function": "relu",
            "dropout": 0.0,
            "scale_embedding": True,
            "max_position_embeddings": 16,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
            **more,
        }
    )


def model_of(**more: object) -> Translator:
    torch.manual_seed(5)
    model = Translator(TransformerModel(config_of(**more)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            norm = "norm" in name and name.endswith("weight")
            nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.2)
    return model.eval()


def draw(count: int) -> list[int]:
    return torch.randint(2, VOCABULARY, (count,)).tolist()


def pairs(lengths: Sequence[tuple[int, int]] = PAIRS) -> list[Pair]:
    return [(draw(source), draw(target)) for source, target in lengths]


def batch_of(given: Sequence[Pair]) -> PackedBatch:
    made = [
        Feature(tokens=[*source, *target], choices=(len(source), len(target)))
        for source, target in given
    ]
    return FeatureSet.of(made).batch(np.arange(len(made)), sort=False)


def torch_model(model: Translator) -> tuple[nn.Module, nn.Module]:
    """Torch's encoder and decoder with the weights of ours."""
    first = model.backbone.config.normalize_before
    options = {"dropout": 0.0, "batch_first": True, "norm_first": first}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(SIZE, HEADS, INNER, **options),
        2,
        nn.LayerNorm(SIZE) if first else None,
        enable_nested_tensor=False,
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(SIZE, HEADS, INNER, **options),
        3,
        nn.LayerNorm(SIZE) if first else None,
    )
    ours = list(model.backbone.layers)
    for theirs, mine in zip([*encoder.layers, *decoder.layers], ours, strict=True):
        cross = mine.cross is not None
        copies = {
            "self_attn.in_proj_weight": mine.attention.qkv.weight,
            "self_attn.in_proj_bias": mine.attention.qkv.bias,
            **of("self_attn.out_proj", mine.attention.output),
            **of("norm1", mine.attention_norm),
            **of("linear1", mine.feed_forward.up),
            **of("linear2", mine.feed_forward.down),
            **of("norm3" if cross else "norm2", mine.feed_forward_norm),
        }
        if cross:
            both = (mine.cross.query, mine.cross.kv)
            copies |= {
                "multihead_attn.in_proj_weight": torch.cat([part.weight for part in both]),
                "multihead_attn.in_proj_bias": torch.cat([part.bias for part in both]),
                **of("multihead_attn.out_proj", mine.cross.output),
                **of("norm2", mine.cross_norm),
            }
        theirs.load_state_dict({name: value.detach() for name, value in copies.items()})
    if first:
        encoder.norm.load_state_dict(model.backbone.source_norm.state_dict())
        decoder.norm.load_state_dict(model.backbone.final_norm.state_dict())
    return encoder.train(), decoder.train()  # in evaluation it takes a path without gradients


def of(name: str, part: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": part.weight, f"{name}.bias": part.bias}


def torch_logits(
    model: Translator, parts: tuple[nn.Module, nn.Module], table: Tensor, pair: Pair
) -> Tensor:
    """One pair through torch's modules: `[target, vocab]`."""
    encoder, decoder = parts

    def embedded(ids: list[int]) -> Tensor:
        places = sinusoidal_positions(len(ids), SIZE, interleaved=False)
        return (table[ids] * math.sqrt(SIZE) + places)[None]

    source, target = pair
    mask = nn.Transformer.generate_square_subsequent_mask(len(target))
    hidden = decoder(embedded(target), encoder(embedded(source)), tgt_mask=mask)
    return (hidden @ table.T)[0]


@pytest.mark.parametrize("first", [False, True])
def test_values_and_gradients_are_those_of_torch(first: bool) -> None:
    model = model_of(normalize_before=first)
    given = pairs()
    parts, table = torch_model(model), model.backbone.embeddings.tokens.weight.detach().clone()
    table.requires_grad_()
    wanted = torch.cat([torch_logits(model, parts, table, pair) for pair in given])
    found = model(batch_of(given))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    found.square().mean().backward()
    wanted.square().mean().backward()
    mine = model.backbone.embeddings.tokens.weight.grad
    torch.testing.assert_close(mine, table.grad, atol=1e-5, rtol=1e-3)
    cross = model.backbone.layers[3].cross
    theirs = parts[1].layers[1].multihead_attn.in_proj_weight.grad
    both = torch.cat([cross.query.weight.grad, cross.kv.weight.grad])
    torch.testing.assert_close(both, theirs, atol=1e-5, rtol=1e-3)
    qkv = model.backbone.layers[0].attention.qkv.weight.grad
    torch.testing.assert_close(
        qkv, parts[0].layers[0].self_attn.in_proj_weight.grad, atol=1e-5, rtol=1e-3
    )


def test_nothing_leaks_from_pair_to_pair_nor_from_later_tokens() -> None:
    model, given = model_of(), pairs()
    before = model(batch_of(given)).split([len(target) for _, target in given])
    source, target = given[3]
    changed = [*given]
    changed[3] = ([(t + 1) % VOCABULARY for t in source], [*target[:4], *draw(len(target) - 4)])
    after = model(batch_of(changed)).split([len(target) for _, target in given])
    for i in (0, 1, 2, 4):
        torch.testing.assert_close(after[i], before[i], atol=1e-6, rtol=1e-5)
    assert (after[3] - before[3]).abs().max() > 1e-2  # the source is seen
    changed[3] = (source, changed[3][1])
    again = model(batch_of(changed)).split([len(target) for _, target in given])
    torch.testing.assert_close(again[3][:4], before[3][:4], atol=1e-6, rtol=1e-5)
    assert (again[3][4:] - before[3][4:]).abs().max() > 1e-2


def test_a_batch_takes_pairs_apart() -> None:
    made = [
        Feature([1, 2, 3], choices=(1, 2), targets={"label": [0, 8, 9], "row": 5}),
        Feature([4, 5, 6, 7], choices=(3, 1), targets={"label": [0, 0, 0, 7], "row": 6}),
    ]
    source, target = FeatureSet.of(made).batch(np.arange(2), sort=False).pairs
    assert source.tokens.tolist() == [1, 4, 5, 6]
    assert source.layout.lengths == (1, 3)
    assert source.positions.tolist() == [0, 0, 1, 2]
    assert target.tokens.tolist() == [2, 3, 7]
    assert target.layout.lengths == (2, 1)
    assert target.targets["label"].tolist() == [8, 9, 7]
    assert set(target.targets) == {"label"}


def from_scratch(model: Translator, given: Sequence[Pair]) -> Tensor:
    """The last logits of each target, each pair alone and without a cache."""
    return torch.cat([model(batch_of([pair]))[-1:] for pair in given])


@pytest.mark.parametrize("first", [False, True])
@torch.inference_mode()
def test_each_step_is_as_if_all_were_computed_anew(first: bool) -> None:
    model = model_of(normalize_before=first)
    given = [(draw(n), [0]) for n in (5, 1, 9, 5)]
    logits, state = model.start([source for source, _ in given])
    torch.testing.assert_close(logits, from_scratch(model, given), atol=1e-5, rtol=1e-5)
    # Forked, reordered, dropped; beyond the table of sinusoids; several tokens at a time.
    for rows in (
        [0, 1, 2, 3],
        [2, 2, 0, 0, 3, 3],
        [0, 1, 2, 3, 4, 5],
        [5, 2, 0],
        *[[0, 1, 2]] * 18,
    ):
        state.select(rows)
        tokens = draw(len(rows))
        given = [(given[r][0], [*given[r][1], t]) for r, t in zip(rows, tokens, strict=True)]
        logits = model.step(torch.tensor(tokens), state)
        torch.testing.assert_close(logits, from_scratch(model, given), atol=1e-5, rtol=1e-5)
    more = [draw(n) for n in (2, 1, 3)]
    given = [(source, [*old, *new]) for (source, old), new in zip(given, more, strict=True)]
    logits = model.follow(more, state)
    torch.testing.assert_close(logits, from_scratch(model, given), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_translations_that_are_begun_later_join_those_at_work() -> None:
    model = model_of()
    given = [(draw(n), [0, 6]) for n in (4, 2)]
    _, state = model.start([source for source, _ in given])
    model.step(torch.tensor([6, 6]), state)
    late = [(draw(n), [0]) for n in (8, 3)]
    _, other = model.start([source for source, _ in late])
    state.extend(other)
    tokens = draw(4)
    given = [(s, [*t, n]) for (s, t), n in zip([*given, *late], tokens, strict=True)]
    logits = model.step(torch.tensor(tokens), state)
    torch.testing.assert_close(logits, from_scratch(model, given), atol=1e-5, rtol=1e-5)


def step(model: Translator, given: Sequence[Pair], state: object) -> list[Pair]:
    """One more token of each target, as if all were computed anew."""
    tokens = draw(len(given))
    longer = [(source, [*old, new]) for (source, old), new in zip(given, tokens, strict=True)]
    logits = model.step(torch.tensor(tokens), state)
    torch.testing.assert_close(logits, from_scratch(model, longer), atol=1e-5, rtol=1e-5)
    return longer


@pytest.mark.parametrize(("lengths", "rows"), [((4, 7, 2, 7), [0, 3, 2]), ((4, 4, 7), [0, 1])])
@torch.inference_mode()
def test_sources_stay_in_line_with_their_targets(lengths: tuple[int, ...], rows: list[int]) -> None:
    """Else each step would copy the keys of every source."""
    model = model_of()
    given = [(draw(n), [0]) for n in lengths]
    _, state = model.start([source for source, _ in given])
    state.select(rows)
    assert state.source is not None
    assert state.source.owners == list(range(len(rows)))
    given = step(model, [given[row] for row in rows], state)
    # Who joins takes a free place.
    places = [layer.keys.data_ptr() for layer in state.source._layers]
    given.append((draw(3), [0]))
    state.extend(model.start([given[-1][0]])[1])
    assert [layer.keys.data_ptr() for layer in state.source._layers] == places
    step(model, given, state)


def test_tables_of_their_own_and_larger_vocabularies() -> None:
    model = model_of(share_encoder_decoder_embeddings=False, decoder_vocab_size=29)
    assert model.vocab_size == 29
    assert model.backbone.config.to_dict()["model_type"] == "marian"
    given = [([30, 36], [0, 28])]
    assert model(batch_of(given)).shape == (2, 29)
    shared = model_of()
    before = shared(batch_of(given))
    resize_vocabulary(shared, VOCABULARY + 3)
    after = shared(batch_of(given))
    assert after.shape == (2, VOCABULARY + 3)
    torch.testing.assert_close(after[:, :VOCABULARY], before)


def test_fresh_matrices_have_the_variance_of_glorot() -> None:
    torch.manual_seed(0)
    config = config_of(d_model=64, encoder_ffn_dim=256, decoder_ffn_dim=256)
    backbone = TransformerModel(config)
    layer = backbone.layers[2]
    for matrix in (*layer.attention.qkv.weight.chunk(3), *layer.cross.kv.weight.chunk(2)):
        assert float(matrix.detach().var()) == pytest.approx(2 / 128, rel=0.1)
    assert float(layer.feed_forward.up.weight.detach().var()) == pytest.approx(2 / 320, rel=0.1)
    assert float(layer.feed_forward.up.bias.detach().abs().max()) == 0
    assert float(backbone.embeddings.tokens.weight.detach().std()) == pytest.approx(1 / 8, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"decoder_attention_heads": 5}, "decoder_attention_heads"),
        ({"decoder_layers": 0}, "decoder_layers"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"decoder_start_token_id": VOCABULARY}, "decoder_start_token_id"),
        ({"eos_token_id": VOCABULARY}, "eos_token_id"),
        ({"eos_token_id": -5}, "eos_token_id"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": [1, 2]}, "eos_token_id"),
        ({"scale_embedding": "no"}, "scale_embedding must be true or false"),
        ({"normalize_before": 1}, "normalize_before must be true or false"),
        ({"share_encoder_decoder_embeddings": "x"}, "share_encoder_decoder_embeddings"),
    ],
)
def test_a_config_that_makes_no_sense(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        config_of(**wrong)


def test_single_texts_are_refused() -> None:
    with pytest.raises(CheckpointError, match="pairs"):
        model_of()(PackedBatch.of([[1, 2]]))
