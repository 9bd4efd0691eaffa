"""T5 and mT5 beside transformers', in all their layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pretune.bundle.bundle import outline
from pretune.checkpoints.config import family_of, read_config
from pretune.checkpoints.load import load_into, settled
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.data.batch import PackedBatch
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.writer import Writer
from pretune.errors import CheckpointError
from pretune.models.families import FAMILIES, preset
from pretune.models.family import Family
from pretune.models.resize import resize_vocabulary
from pretune.models.t5 import MT5Config, T5Config
from pretune.tokenizers.train import train_tokenizer
from tests.models.t5_models import t5
from tests.parity.families import difference, pair_batch, sides

#: Longer ones than the longest distance that has a range of its own.
LENGTHS = (7, 1, 12, 3, 30)
V11 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LAYOUTS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "v1.0": ("t5", False, {}),
    "v1.1": ("t5", True, V11),
    "mt5": ("mt5", True, {}),
    "scaled": ("mt5", False, {"feed_forward_proj": "relu"}),
}


def some_slow(*quick: Any, slow: tuple[Any, ...]) -> list[Any]:
    """Parameters of a test, the latter of which are for `make slow`."""
    return [*quick, *(pytest.param(own, marks=pytest.mark.slow) for own in slow)]


def read(folder: Path, head: str) -> tuple[Any, Family]:
    """Our model of a folder, as `load` reads it; nothing is missing or left over."""
    weights = open_weights(folder)
    config = settled(read_config(folder), folder, weights)
    family = family_of(config, folder)
    sizes = family.backbone.config_class.from_dict(config)
    build = lambda: family.build(sizes, head, 5)  # noqa: E731
    model, report = load_into(build, weights, folder, family, head)
    assert (report.missing, report.unexpected) == ((), ())
    return model.eval(), family


def texts() -> list[list[int]]:
    torch.manual_seed(1)
    return [torch.randint(2, 53, (length,)).tolist() for length in LENGTHS]


def theirs(model: nn.Module) -> list[Tensor]:
    """Each pair by itself: no padding."""
    return [
        model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits[0]
        for source, target in sides(texts())
    ]


def ours(model: nn.Module) -> list[Tensor]:
    """All pairs packed."""
    batch = pair_batch(sides(texts()))
    logits: Tensor = model(batch)
    return list(logits.split(batch.pairs[1].layout.lengths))


def close(one: list[Tensor], two: list[Tensor]) -> bool:
    largest = max(float(x.detach().abs().max()) for x in two)
    return difference(one, two) < 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("layout", some_slow("v1.0", "v1.1", slow=("mt5", "scaled")))
def test_logits_and_gradients_are_those_of_transformers(layout: str, tmp_path: Path) -> None:
    kind, separate, more = LAYOUTS[layout]
    model = t5(kind, "ForConditionalGeneration", separate=separate, dropout_rate=0.0, **more)
    model.save_pretrained(tmp_path)
    mine, _ = read(tmp_path, "translation")
    assert mine.ties_output is not separate
    found, wanted = ours(mine), theirs(model)
    assert close(found, wanted)
    torch.cat(found).square().mean().backward()
    torch.cat(wanted).square().mean().backward()
    parts, places = dict(model.named_parameters()), mine.backbone.embeddings
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    for own, name in (
        (places.tokens.weight, "shared.weight"),
        (places.source_places.table.weight, f"encoder.{bias}"),
        (places.target_places.table.weight, f"decoder.{bias}"),
        (mine.backbone.layers[3].cross.query.weight, "decoder.block.1.layer.1.EncDecAttention.q"),
    ):
        grad = parts[name if name in parts else f"{name}.weight"].grad
        torch.testing.assert_close(own.grad, grad, atol=1e-4 * float(grad.abs().max()), rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("layout", some_slow("v1.1", slow=("v1.0", "mt5", "scaled")))
def test_what_we_save_is_theirs(layout: str, tmp_path: Path) -> None:
    kind, separate, more = LAYOUTS[layout]
    theirs_first, ours_then = tmp_path / "theirs", tmp_path / "ours"
    ours_then.mkdir()
    t5(kind, "ForConditionalGeneration", separate=separate, **more).save_pretrained(theirs_first)
    mine, family = read(theirs_first, "translation")
    save_model(mine, ours_then, family, "translation")
    kind_of = getattr(transformers, f"{kind.upper()}ForConditionalGeneration")
    again, info = kind_of.from_pretrained(ours_then, output_loading_info=True)
    assert not any((info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"]))
    assert close(theirs(again.eval()), ours(mine))
    assert close(ours(read(ours_then, "translation")[0]), ours(mine))


@torch.no_grad()
@pytest.mark.parametrize("kind", some_slow("t5", slow=("mt5",)))
@pytest.mark.parametrize("name", ["EncoderModel", "ForTokenClassification"])
def test_the_encoder_alone(kind: str, name: str, tmp_path: Path) -> None:
    head = "backbone" if name == "EncoderModel" else "token_classification"
    model = t5(kind, name, num_labels=5)
    model.save_pretrained(tmp_path / "theirs")
    mine, family = read(tmp_path / "theirs", head)
    (tmp_path / "ours").mkdir()
    labels = {} if head == "backbone" else {"id2label": {i: str(i) for i in range(5)}}
    save_model(mine, tmp_path / "ours", family, head, labels)
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    batch = PackedBatch.of(texts())
    output = mine(batch)
    found = output if isinstance(output, Tensor) else output.last_hidden_state
    for one in (model, again):
        outputs = [one(input_ids=torch.tensor([ids])) for ids in texts()]
        wanted = [o.last_hidden_state[0] if head == "backbone" else o.logits[0] for o in outputs]
        assert close(list(found.split(LENGTHS)), wanted)


@pytest.mark.parametrize("beams", some_slow(4, slow=(1,)))
def test_texts_are_written_token_by_token_as_there(beams: int, tmp_path: Path) -> None:
    model = t5("t5", "ForConditionalGeneration", num_decoder_layers=2, seed=3)
    model.save_pretrained(tmp_path)
    mine, _ = read(tmp_path, "translation")
    search = {"num_beams": beams, "max_new_tokens": 15, "length_penalty": 0.8}
    sources = [[*ids, 1] for ids in texts()]
    padded = torch.tensor([ids + [0] * (31 - len(ids)) for ids in sources])
    mask = torch.tensor([[1] * len(ids) + [0] * (31 - len(ids)) for ids in sources])
    with torch.no_grad():
        wanted = model.generate(padded, attention_mask=mask, **search)[:, 1:].tolist()
    tokenizer = train_tokenizer(["a text"], "bpe", 300)
    writer = Writer(mine, tokenizer, device=torch.device("cpu"), stop_tokens=[1])
    decoding = Decoding(
        max_new_tokens=15, temperature=0, top_p=1.0, beams=beams, length_penalty=0.8
    )
    written = [own.tokens for own in writer.write([Prompt((), ids) for ids in sources], decoding)]
    assert [list(own) for own in written] == [
        ids[: ids.index(1) + 1] if 1 in ids else ids for ids in wanted
    ]
    assert len(set(written)) > 2


@torch.no_grad()
def test_several_tokens_are_read_at_once_as_one_by_one(tmp_path: Path) -> None:
    t5("t5", "ForConditionalGeneration").save_pretrained(tmp_path)
    mine, _ = read(tmp_path, "translation")
    sources = texts()[:3]
    _, state = mine.start(sources)
    together = mine.follow([[3, 4, 5], [6], [7, 8]], state)
    _, state = mine.start(sources)
    for own in ([3, 6, 7], [4, 6, 8], [5, 6, 8]):
        single = mine.step(torch.tensor(own), state)
        if own[0] == 5:
            torch.testing.assert_close(single[0], together[0], atol=1e-4, rtol=1e-4)
        if own[2] == 8 and own[0] == 4:
            torch.testing.assert_close(single[2], together[2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("separate", [False, True])
def test_a_vocabulary_grows_with_its_output(separate: bool, tmp_path: Path) -> None:
    more = V11 if separate else {}
    t5("t5", "ForConditionalGeneration", separate=separate, **more).save_pretrained(tmp_path)
    mine, _ = read(tmp_path, "translation")
    resize_vocabulary(mine, 60)
    assert mine.output_table().shape == (60, 24)
    assert ours(mine)[0].shape[1] == 60


def test_fresh_weights_of_every_size_keep_sums_near_one() -> None:
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "vocab_size": 500, "d_model": 64, "num_heads": 2, "d_ff": 96}
    for name in ("t5-small", "t5-v1.1-small", "mt5-small"):
        entries = {**(preset(name) or {}), **sizes, "dropout_rate": 0.0}
        family = FAMILIES[entries["model_type"]]
        family = family.variant(entries) if family.variant else family
        model: Any = family.build(family.backbone.config_class.from_dict(entries), "translation")
        logits = model(pair_batch(sides(texts())))
        assert 0.3 < float(logits.std()) < 30


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"feed_forward_proj": "gated-gated"}, "feed_forward_proj 'gated-gated' is unknown"),
        ({"feed_forward_proj": "a-b-c"}, "feed_forward_proj 'a-b-c' is unknown"),
        ({"feed_forward_proj": 3}, "feed_forward_proj 3 is unknown"),
        ({"dense_act_fn": "silu"}, "dense_act_fn is 'silu', and feed_forward_proj relu"),
        ({"dense_act_fn": 3}, "dense_act_fn is 3, and"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets must be"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance must be"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false"),
        ({"num_decoder_layers": 0}, "num_decoder_layers must be"),
        ({"eos_token_id": 32128}, "eos_token_id must be"),
    ],
)
def test_entries_that_make_no_sense_are_named(entries: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        T5Config.from_dict(entries)


@pytest.mark.parametrize(
    ("kind", "named"), [("gated-gelu", "gelu_new"), ("gated-silu", "swish"), ("relu", "relu")]
)
def test_an_activation_may_be_named_twice(kind: str, named: str) -> None:
    config = T5Config.from_dict({"feed_forward_proj": kind, "dense_act_fn": named})
    assert config.feed_forward_proj == kind


def test_there_is_one_dropout() -> None:
    assert T5Config.dropout_entries(0.2, None) == {"dropout_rate": 0.2}
    assert T5Config.dropout_entries(0.2, 0.2) == {"dropout_rate": 0.2}
    with pytest.raises(CheckpointError, match="one dropout"):
        MT5Config.dropout_entries(0.2, 0.1)


def test_a_copy_of_the_table_with_other_values_is_refused(tmp_path: Path) -> None:
    model = t5("t5", "Model")
    model.encoder.embed_tokens.weight = nn.Parameter(torch.randn(53, 24))
    model.all_tied_weights_keys.pop("encoder.embed_tokens.weight")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has other values than 'shared\.weight'"):
        read(tmp_path, "backbone")


def test_an_outline_counts_an_output_layer_that_config_names(tmp_path: Path) -> None:
    t5("t5", "ForConditionalGeneration", separate=True, **V11).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    model: Any = outline(tmp_path).model
    assert model.lm_head.weight.shape == (53, 24)
