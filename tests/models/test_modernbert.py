from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models.families import FAMILIES, build_head, preset
from pretune.models.modernbert import GLOBAL, LOCAL, ModernBertConfig, ModernBertModel
from pretune.models.pruned import keep_layers, keep_neurons
from pretune.tokenizers.load import load_tokenizer
from tests.parity.families import difference, our_logits, ours_of, published, their_logits

SMALL: dict[str, Any] = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
}
#: Longer than what a local layer sees, and shorter.
IDS = [[1, 4, 8, 2, 9, 7, 3, 3, 5, 6, 2, 1], [5], [2, 7]]


def both(folder: Path, head: str, **entries: Any) -> float:
    """The largest difference of our model and transformers' with these entries."""
    torch.manual_seed(1)
    theirs = published("modernbert", head, **entries)
    theirs.save_pretrained(folder)
    ours = ours_of(folder, "modernbert", head)
    with torch.no_grad():
        return difference(our_logits(ours, head, IDS), their_logits(theirs, head, IDS))


@pytest.mark.parametrize(
    ("head", "entries"),
    [
        ("sequence_classification", {"classifier_pooling": "mean", "classifier_bias": True}),
        pytest.param(
            "masked_lm",
            {"decoder_bias": False, "norm_bias": True, "classifier_activation": "silu"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "backbone",
            {"attention_bias": True, "mlp_bias": True, "local_attention": 5},
            marks=pytest.mark.slow,
        ),
        (
            "backbone",
            {
                "layer_types": [LOCAL, GLOBAL, GLOBAL, LOCAL],
                "rope_parameters": {
                    GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
                    LOCAL: {"rope_type": "default", "rope_theta": 30.0},
                },
            },
        ),
    ],
)
def test_variants_are_transformers(tmp_path: Path, head: str, entries: dict[str, Any]) -> None:
    assert both(tmp_path, head, **entries) < 1e-5


def test_older_entries_mean_what_they_meant() -> None:
    """Those of transformers 4, of which mmBERT has other values than ModernBERT."""
    older = {
        **SMALL,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 500.0,
        "local_rope_theta": 30.0,
    }
    ours = ModernBertConfig.from_dict(older)
    theirs = transformers.ModernBertConfig(**older)
    assert ours.to_dict()["layer_types"] == theirs.layer_types == [GLOBAL, LOCAL, GLOBAL, LOCAL]
    assert ours.to_dict()["rope_parameters"] == theirs.rope_parameters
    # And they are written for transformers 4, beside what transformers 5 reads.
    assert {name: ours.to_dict()[name] for name in older} == older
    assert ModernBertConfig.from_dict(ours.to_dict()).to_dict() == ours.to_dict()
    null = ModernBertConfig.from_dict({**older, "local_rope_theta": None})
    assert null.to_dict()["local_rope_theta"] == 500.0


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"layer_types": [GLOBAL]}, "layer_types must say"),
        ({"layer_types": "full_attention"}, "layer_types must say"),
        ({"layer_types": ["other"] * 4}, "layer_types must say"),
        ({"classifier_pooling": "max"}, "classifier_pooling 'max' is unknown"),
        ({"classifier_activation": "x"}, "classifier_activation 'x' is unknown"),
        ({"norm_bias": "no"}, "norm_bias must be true or false"),
        ({"local_attention": 0}, "local_attention must be"),
        ({"rope_parameters": {GLOBAL: {"rope_type": "axial"}}}, "rope_type 'axial'"),
        ({"global_rope_theta": "many"}, "rope_theta"),
    ],
)
def test_what_makes_no_sense_is_named(entries: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        ModernBertConfig.from_dict({**SMALL, **entries})


def test_a_layer_keeps_its_kind_and_the_first_one_stays() -> None:
    model = ModernBertModel(ModernBertConfig(**SMALL, global_attn_every_n_layers=2))
    with pytest.raises(CheckpointError, match="layer 0 of a modernbert has no LayerNorm"):
        keep_layers(model, [1, 2])
    assert len(model.layers) == 4
    keep_layers(model, [0, 2, 3])
    assert model.config.to_dict()["layer_types"] == [GLOBAL, GLOBAL, LOCAL]


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = build_head(ModernBertModel(ModernBertConfig(**SMALL)), "sequence_classification", 3)
    model(PackedBatch.of(IDS)).logsumexp(1).sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.slow
def test_published_sizes() -> None:
    """Parameters of the published models (Warner et al. 2024, table 4: 149M and 395M)."""
    counts = {}
    for name in ("modernbert-base", "modernbert-large", "mmbert-base"):
        config = ModernBertConfig.from_dict(preset(name) or {})
        with torch.device("meta"):
            model = FAMILIES["modernbert"].build(config)
            sizes = transformers.ModernBertConfig(**config.to_dict())
            theirs = transformers.ModernBertModel(sizes)
        counts[name] = sum(p.numel() for p in model.parameters())
        assert counts[name] == sum(p.numel() for p in theirs.parameters())
    assert [round(count / 1e6) for count in counts.values()] == [149, 395, 307]


@torch.no_grad()
def test_neurons_go_with_their_gates() -> None:
    torch.manual_seed(0)
    model, batch = ModernBertModel(ModernBertConfig(**SMALL)).eval(), PackedBatch.of(IDS)
    kept = torch.tensor([0, 3, 4, 9])
    for layer in model.layers:
        down = layer.get_submodule("feed_forward.down").get_parameter("weight")
        down[:, [i for i in range(12) if i not in kept.tolist()]] = 0
    before = model(batch).last_hidden_state
    keep_neurons(model, [kept] * 4)
    assert model.config.intermediate_size == 4
    assert (model(batch).last_hidden_state - before).abs().max() < 1e-6


def test_its_tokenizer_frames_pairs_without_segments(tmp_path: Path) -> None:
    """A byte-level BPE whose `tokenizer.json` frames texts as BERT's does."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    engine.train_from_iterator(["the film was good, and the film was long"], trainer)
    ends = [(token, engine.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    engine.post_processor = processors.TemplateProcessing(
        "[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", ends
    )
    named = {f"{name[1:-1].lower()}_token": name for name in special}
    inputs = ["input_ids", "attention_mask"]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=engine, model_input_names=inputs, **named
    ).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "modernbert"}')
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    first, second = ["the film was good", "好 un film"], ["and long", "[MASK]!"]
    found = ours.encode(first, second)
    assert [pair.ids for pair in found] == theirs(first, second)["input_ids"]
    assert all(not any(pair.segments or ()) for pair in found)
    assert not ours.tells_segments


def test_half_of_a_window_counts_as_to_transformers() -> None:
    entries = {"local_attention": 128, "sliding_window": 3}
    assert ModernBertConfig.from_dict(entries).local_attention == 6
    assert transformers.ModernBertConfig(**entries).local_attention == 6
    for wrong in (0, False, "3"):
        with pytest.raises(CheckpointError, match="local_attention"):
            ModernBertConfig.from_dict({"sliding_window": wrong})


def test_heads_of_an_odd_width_are_refused() -> None:
    with pytest.raises(CheckpointError, match="turn 3 dimensions of a head of 3"):
        ModernBertConfig(hidden_size=24, num_attention_heads=8)
