"""Llama, Mistral, Qwen2 and Qwen3 beside transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from torch import nn

from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import PackedBatch
from pretune.decoding.decoding import Decoding
from pretune.errors import CheckpointError
from pretune.experiments.costs import count_flops
from pretune.inference.generate import TextGenerator
from pretune.models.families import FAMILIES, build_head, preset
from pretune.models.gemma import Gemma3Config
from pretune.models.heads.language import CausalLM
from pretune.models.llama import LlamaConfig, LlamaModel, MistralConfig, Qwen2Config, Qwen3Config
from pretune.models.packed import packing
from pretune.models.resize import resize_vocabulary
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions

VOCAB = 270
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
#: Family, and what is particular to a member of it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "smollm": ("llama", {"tie_word_embeddings": True, "mlp_bias": True, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 4, "head_dim": 8}),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 5,
            "sliding_window_pattern": 2,
        },
    ),
}
each_variant = pytest.mark.parametrize("name", VARIANTS)
#: Shorter and longer than the windows.
PROMPTS = [[5, 9, 70], list(range(20, 31)), [7], list(range(90, 106))]


def drawn(model: nn.Module) -> nn.Module:
    """The model with weights so large that every part of it shows."""
    usual = 0.0 if type(model).__name__.startswith("Gemma") else 1.0  # of norms; Gemma adds 1
    for name, weight in model.named_parameters():
        nn.init.normal_(weight, usual if "norm" in name else 0.0, 0.25)
    return model.eval()


def published(family: str, **entries: Any) -> Any:
    """Transformers' language model with random weights."""
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **entries})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return drawn(transformers.AutoModelForCausalLM.from_config(config))


@dataclass(frozen=True)
class Pair:
    """One checkpoint, opened by us and by transformers."""

    folder: Path
    bundle: Bundle
    theirs: Any


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    tokenizer = ByteLevelBPETokenizer()
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(["ab"], vocab_size=VOCAB, special_tokens=special)
    made = {}
    for name, (family, entries) in VARIANTS.items():
        folder = tmp_path_factory.mktemp(name)
        theirs = published(family, **entries)
        theirs.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            '{"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<pad>"}'
        )
        made[name] = Pair(folder, load(folder), theirs)
    return made


def written(pair: Pair, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    decoding = Decoding(temperature=0, max_new_tokens=9, **options)
    answers = TextGenerator.of(pair.bundle, device="cpu").generate(prompts, decoding)
    return [list(answer.tokens) for answer in answers]


def theirs(pair: Pair, prompt: list[int], **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    more = {"do_sample": False, "max_new_tokens": 9, "attention_mask": torch.ones_like(ids)}
    # Rows that stand for no token are never written by us.
    tokens = pair.bundle.tokenizer.engine.get_vocab_size()
    blank = list(range(tokens, pair.theirs.config.vocab_size))
    more |= {"suppress_tokens": blank} if blank else {}
    found: list[int] = pair.theirs.generate(ids, **more, **options)[0, len(prompt) :].tolist()
    return found


@each_variant
def test_greedy_and_beam_search_with_a_cache_are_transformers(pairs, name):
    pair = pairs[name]
    assert written(pair, PROMPTS) == [theirs(pair, prompt) for prompt in PROMPTS]
    found = written(pair, PROMPTS[1:2], beams=3)
    assert found == [theirs(pair, PROMPTS[1], num_beams=3)]


@each_variant
def test_a_padded_batch_is_a_packed_one(pairs, name):
    pair, longest = pairs[name], max(map(len, PROMPTS))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in PROMPTS])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in PROMPTS])
    with torch.no_grad():
        expected = pair.theirs(padded, attention_mask=mask).logits[mask.bool()]
        ours = pair.bundle.model(PackedBatch.of(PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@each_variant
def test_a_text_read_in_pieces_is_the_text_read_at_once(pairs, name):
    model = pairs[name].bundle.model
    texts = [list(range(30, 43)), list(range(60, 68))]
    with torch.no_grad():
        whole = model(PackedBatch.of(texts)).split([13, 8])
        first, cache = model.start([texts[0][:2], texts[1][:5]])
        more = model.follow([texts[0][2:11], texts[1][5:6]], cache, every=True)
        steps = [
            model.step(torch.tensor([texts[0][11 + i], texts[1][6 + i]]), cache) for i in range(2)
        ]
    wanted = torch.cat([whole[0][2:11], whole[1][5:6]])
    torch.testing.assert_close(first, torch.stack([whole[0][1], whole[1][4]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(more, wanted, rtol=0, atol=1e-5)
    for i, step in enumerate(steps):
        wanted = torch.stack([whole[0][11 + i], whole[1][6 + i]])
        torch.testing.assert_close(step, wanted, rtol=0, atol=1e-5)


@each_variant
def test_few_rows_in_8_bits_are_close(pairs, name):
    model, batch = pairs[name].bundle.model, PackedBatch.of(PROMPTS)
    with torch.no_grad():
        exact = model(batch)
        with packing("float32"):
            same = model(batch)
            first, _ = model.start(PROMPTS)
        with packing("int8"):
            rounded = model(batch)
    torch.testing.assert_close(same, exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(first, exact[batch.last.rows], rtol=0, atol=1e-5)
    assert (rounded - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_output_layer_is_kept_for_another_task(pairs, name, tmp_path):
    """Instruction tuning goes on with what the model knows of language."""
    pair = pairs[name]
    bundle = load(pair.folder, task=Instruct(InstructOptions(max_length=32)))
    assert bundle.report is not None
    assert bundle.report.missing == ()
    table = pair.theirs.get_output_embeddings().weight
    assert torch.equal(bundle.model.output_table(), table)
    # And what is saved opens in transformers, with the same logits.
    save(bundle, tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = again(torch.tensor(PROMPTS[1:2])).logits[0]
        ours = bundle.model(PackedBatch.of(PROMPTS[1:2]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_more_tokens_for_both_tables(tied):
    config = LlamaConfig(**SIZES, tie_word_embeddings=tied)
    model = CausalLM(LlamaModel(config), tied=tied)
    before = model.output_table().detach().clone()
    resize_vocabulary(model, VOCAB + 3)
    assert model.output_table().shape == (VOCAB + 3, 24)
    assert torch.equal(model.output_table()[:VOCAB], before)
    assert model.backbone.config.vocab_size == VOCAB + 3
    assert model(PackedBatch.of([[VOCAB + 2, 1]])).shape == (2, VOCAB + 3)


def test_fresh_weights_are_drawn_as_theirs():
    config = LlamaConfig(**{**SIZES, "hidden_size": 96}, initializer_range=0.05)
    model = build_head(LlamaModel(config), "causal_lm")
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert weight.std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("smollm2-135m", 134_515_008),
        ("smollm2-360m", 361_821_120),
        ("tinyllama-1.1b", 1_100_048_384),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("gemma-3-270m", 268_098_176),
        ("gemma-3-1b", 999_885_952),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_published_sizes(name, count):
    """The counts that the models' cards give."""
    entries = preset(name)
    assert entries is not None
    family = FAMILIES[entries["model_type"]]
    config = family.backbone.config_class.from_dict(entries)
    with torch.device("meta"):
        model = build_head(family.backbone(config), "causal_lm")
    assert sum(weight.numel() for weight in model.parameters()) == count


@pytest.mark.parametrize(
    ("kind", "entries", "named"),
    [
        (LlamaConfig, {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        (LlamaConfig, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LlamaConfig, {"num_key_value_heads": 3}, "num_key_value_heads 3"),
        (LlamaConfig, {"num_key_value_heads": 8}, "num_key_value_heads"),
        (LlamaConfig, {"attention_bias": 1}, "attention_bias"),
        (LlamaConfig, {"hidden_act": "relu6"}, "relu6"),
        (LlamaConfig, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        (LlamaConfig, {"layer_types": 5}, "layer_types is 5"),
        (MistralConfig, {"sliding_window": 0}, "sliding_window"),
        (Qwen2Config, {"layer_types": ["full_attention"]}, "layer_types"),
        (Qwen2Config, {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window"),
        (Qwen3Config, {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        (Gemma3Config, {"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        (Gemma3Config, {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        (Gemma3Config, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (Gemma3Config, {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        (Gemma3Config, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
    ],
)
def test_what_is_not_read_is_refused_by_name(kind, entries, named):
    with pytest.raises(CheckpointError, match=named):
        kind.from_dict({**SIZES, **entries})


@pytest.mark.parametrize("name", ["attention_bias", "mlp_bias"])
@pytest.mark.parametrize("kind", [MistralConfig, Qwen2Config, Qwen3Config])
def test_an_entry_of_another_family_changes_nothing(kind, name):
    """Qwen3 has biases of attention; the others' classes in transformers read neither entry."""
    reads = kind is Qwen3Config and name == "attention_bias"
    assert getattr(kind.from_dict({**SIZES, name: True}), name) is reads


def test_a_dropout_that_the_layers_have_not_is_refused():
    with pytest.raises(CheckpointError, match="dropout"):
        LlamaConfig.dropout_entries(0.1, None)
    assert LlamaConfig.dropout_entries(0.0, 0.2) == {"attention_dropout": 0.2}


def test_null_means_what_it_means_to_transformers():
    assert MistralConfig.from_dict({**SIZES, "sliding_window": None}).window(0) is None
    assert MistralConfig.from_dict(SIZES).window(0) == 4096
    assert LlamaConfig.from_dict({**SIZES, "num_key_value_heads": None}).num_key_value_heads == 4


def test_older_tools_read_the_positions_too(tmp_path):
    config = LlamaConfig.from_dict({**SIZES, "rope_parameters": LLAMA3})
    entries = json.loads(json.dumps(config.to_dict()))
    assert entries["rope_theta"] == 1000.0
    assert entries["rope_scaling"] == LLAMA3
    assert LlamaConfig.from_dict(entries) == config
    without = {name: value for name, value in entries.items() if name != "rope_parameters"}
    assert LlamaConfig.from_dict(without) == config


kinds = st.sampled_from(
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {key: value for key, value in LLAMA3.items() if key != "rope_theta"},
    ]
)


@st.composite
def configs(draw) -> tuple[str, dict[str, Any]]:
    family = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    heads, group = draw(st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 3), (4, 4)]))
    width = draw(st.sampled_from([4, 6, 10]))
    layers = draw(st.integers(1, 3))
    rope = {"rope_theta": draw(st.sampled_from([100.0, 1e4, 1e6])), **draw(kinds)}
    entries: dict[str, Any] = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads // group,
        "hidden_size": heads * draw(st.sampled_from([4, 6])),
        "head_dim": width,
        "intermediate_size": draw(st.integers(3, 40)),
        "num_hidden_layers": layers,
        "tie_word_embeddings": draw(st.booleans()),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "hidden_act": draw(st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"])),
        "max_position_embeddings": 8 if rope["rope_type"] == "dynamic" else 32,
        "rope_parameters": rope,
    }
    if family in ("llama", "qwen3"):
        entries["attention_bias"] = draw(st.booleans())
    if family == "llama":
        entries["mlp_bias"] = draw(st.booleans())
    if family == "mistral":
        entries["sliding_window"] = draw(st.sampled_from([None, 2, 3, 20]))
    if family.startswith("qwen"):
        entries["use_sliding_window"] = draw(st.booleans())
        entries["sliding_window"] = draw(st.sampled_from([2, 4]))
        entries["max_window_layers"] = draw(st.integers(0, layers))
    return family, entries


@pytest.mark.slow
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(configs(), st.integers(1, 14))
def test_any_config_is_transformers(tmp_path_factory, drawn_config, length):
    """Logits, gradients of all weights, and generation, for random sizes."""
    family, entries = drawn_config
    folder = tmp_path_factory.mktemp("any")
    other = published(family, **entries)
    other.save_pretrained(folder)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["ab"], vocab_size=VOCAB, special_tokens=["<p>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    bundle = load(folder)
    ids = list(range(30, 30 + length))
    ours, expected = bundle.model(PackedBatch.of([ids])), other(torch.tensor([ids])).logits[0]
    scale = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * scale)
    ours.square().mean().backward()
    expected.square().mean().backward()
    mine = bundle.backbone.embeddings.tokens.weight.grad
    wanted = other.get_input_embeddings().weight.grad
    assert mine is not None
    torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4 * scale)
    # Texts that grow beyond the usual length take other angles, which a cache keeps as they were.
    if entries["rope_parameters"]["rope_type"] != "dynamic":
        pair = Pair(folder, bundle, other)
        assert written(pair, [ids], stop_tokens=(2,)) == [theirs(pair, ids)]


def test_heads_of_another_width_count_in_the_costs():
    config = LlamaConfig(**SIZES, head_dim=10)
    with torch.device("meta"):
        model = CausalLM(LlamaModel(config), tied=True)
    matrices = 3 * (24 * (4 + 2 + 2) * 10 + 4 * 10 * 24 + 3 * 24 * 40) + 24 * VOCAB
    assert count_flops(model, 7).per_token == 2 * matrices + 4 * 7 * 3 * 4 * 10


def test_layers_that_stay_keep_their_windows():
    entries = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    config = Qwen2Config(**SIZES, **entries).with_layers([0, 2])
    assert [config.window(layer) for layer in range(2)] == [None, 5]
    assert Qwen2Config.from_dict(config.to_dict()) == config


def test_older_gemmas_name_their_angles_otherwise():
    scaling = {"rope_type": "linear", "factor": 8.0}
    older = {"rope_theta": 5e5, "rope_local_base_freq": 2e4, "rope_scaling": scaling}
    config = Gemma3Config.from_dict({**SIZES, **older})
    assert config.rope_parameters == {
        "full_attention": {**scaling, "rope_theta": 5e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    theirs = transformers.Gemma3TextConfig(**SIZES, **json.loads(json.dumps(older)))
    assert theirs.rope_parameters == config.rope_parameters
    assert Gemma3Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
