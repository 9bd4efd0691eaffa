"""Every entry that a `config.json` may have, with other values than usual: what pretune computes is
what transformers computes, or the entry is refused by name.

    PRETUNE_CONFIG_KEYS=all python -m pytest -m slow tests/parity/test_config_keys.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from pretune.checkpoints.config import family_of, read_config, sizes_of
from pretune.checkpoints.load import load_into, settled
from pretune.checkpoints.open import open_weights
from pretune.errors import CheckpointError
from pretune.models.families import FAMILIES
from tests.parity.families import CASES, LABELS, SIZES, TWO_OUTPUTS, our_logits, their_logits

#: Whether all edits of every family are tried, some minutes in all, or a sample of each head.
ALL = os.environ.get("PRETUNE_CONFIG_KEYS") == "all"
SAMPLE = 12
#: The entry is not in the file.
DROPPED = "(dropped)"
#: Three texts. Token 5 ends one of them, and token 6 is all that there is of another.
IDS = [[2, 5, 9, 51, 3, 1, 7], [11, 1, 7, 8, 4, 31, 22, 52, 3, 7, 6, 5], [6]]
#: The largest relative difference of hidden states, and of logits.
CLOSE, CLOSE_LOGITS = 1e-5, 1e-4

_LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}
_YARN["original_max_position_embeddings"] = 5
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 5, "rope_theta": 100.0}
_OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh")
_OTHER_ACTIVATIONS = ("gelu_fast", "quick_gelu", "relu2")
_DROPOUTS = (0.0, 0.5)
_FLAGS = (True, False)

#: Other values of entries, whichever family they are of. Each is tried as null, too, and left out.
VALUES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_act", "activation", "activation_function", "hidden_activation"), ()),
    # Sizes.
    **dict.fromkeys(("vocab_size",), (53, 60)),
    **dict.fromkeys(("hidden_size", "dim", "n_embd"), (16, 32)),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer"), (1, 3)),
    **dict.fromkeys(("num_attention_heads", "n_heads", "n_head"), (2, 3)),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "n_inner"), (32, 24)),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), (18, 32)),
    "type_vocab_size": (1, 2),
    "embedding_size": (8, 24),
    "num_key_value_heads": (1, 4),
    "head_dim": (4, 6),
    "num_hidden_groups": (3,),
    "inner_group_num": (2,),
    "task_type_vocab_size": (2, 5),
    # Numbers.
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"), (0.3, 1e-5)),
    "initializer_range": (0.5, 0.0),
    # Dropouts, which answers do not have.
    **dict.fromkeys(
        (
            *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
            *("classifier_dropout_prob", "dropout", "attention_dropout", "qa_dropout"),
            *("seq_classif_dropout", "summary_last_dropout", "summary_first_dropout"),
            *("resid_pdrop", "embd_pdrop", "attn_pdrop", "pooler_dropout", "cls_dropout"),
        ),
        _DROPOUTS,
    ),
    # Special tokens.
    "pad_token_id": (5, 7, 52),
    "bos_token_id": (5, 52),
    "eos_token_id": (5, [5, 6]),
    "mask_token_id": (4, 52),
    # What attention sees.
    "is_decoder": _FLAGS,
    "is_causal": _FLAGS,
    "add_cross_attention": _FLAGS,
    "is_encoder_decoder": _FLAGS,
    "attention_bias": _FLAGS,
    "mlp_bias": _FLAGS,
    "layer_types": ([_FULL] * 2, [_SLIDING, _FULL]),
    "sliding_window": (3, 100),
    "use_sliding_window": _FLAGS,
    "max_window_layers": (0, 1, 2),
    "attention_chunk_size": (3,),
    "position_embedding_type": (
        *("absolute", "relative_key", "relative_key_query", "rotary", "sinusoidal"),
    ),
    "scale_attn_weights": _FLAGS,
    "scale_attn_by_inverse_layer_idx": _FLAGS,
    "reorder_and_upcast_attn": _FLAGS,
    # Rotary positions, as transformers 5 has them and as older versions wrote them.
    "rope_parameters": (_LINEAR, _YARN, _LLAMA3, {"rope_type": "default", "rope_theta": 70.0}),
    "rope_theta": (100.0, 7),
    "rope_scaling": ({"type": "linear", "factor": 3.0}, _OLD_YARN, {"rope_type": "default"}),
    "partial_rotary_factor": (0.5, 1.0),
    "original_max_position_embeddings": (7,),
    "pretraining_tp": (1, 2),
    # The heads.
    "tie_word_embeddings": _FLAGS,
    "num_labels": (LABELS,),
    "id2label": ({str(i): "abcde"[i] for i in (4, 2, 0, 1, 3)},),
    "label2id": ({"a": 0},),
    "problem_type": ("regression", "single_label_classification", "multi_label_classification"),
    "summary_type": ("first", "last", "mean", "cls_index"),
    "summary_use_proj": _FLAGS,
    "summary_activation": ("gelu", "tanh", "relu"),
    "summary_proj_to_labels": _FLAGS,
    "classifier_pooling": ("bos", "mean", "late"),
    # Of ERNIE, DistilBERT, DeBERTa.
    "use_task_id": _FLAGS,
    "sinusoidal_pos_embds": _FLAGS,
    "relative_attention": _FLAGS,
    "pos_att_type": (["c2p"], ["p2c"], [], "c2p|p2c", "p2c"),
    "max_relative_positions": (-1, 3, 8),
    "position_buckets": (-1, 2, 6),
    "norm_rel_ebd": ("none", "layer_norm", "layer_norm|x"),
    "share_att_key": _FLAGS,
    "position_biased_input": _FLAGS,
    "pooler_hidden_act": ("gelu", "tanh", "relu"),
    "pooler_hidden_size": (24, 16),
    "attention_head_size": (6, 8),
    "conv_kernel_size": (0, 3, 5),
    "conv_groups": (1, 2),
    "conv_act": ("tanh", "gelu", "relu"),
    "legacy": _FLAGS,
    # How transformers works, which changes no number.
    "use_cache": _FLAGS,
    "chunk_size_feed_forward": (1,),
    "output_hidden_states": _FLAGS,
    "output_attentions": _FLAGS,
    "return_dict": (True,),
    "dtype": ("float32", "float16", "bfloat16"),
    "torch_dtype": ("float32", "bfloat16"),
    "transformers_version": ("4.30.2",),
}
#: Entries that heads read: they are tried with every head, the others with the backbone alone.
OF_HEADS = {
    *("hidden_act", "activation", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps"),
    *("pad_token_id", "tie_word_embeddings", "embedding_size", "vocab_size", "classifier_dropout"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    *("classifier_pooling", "mlp_bias", "pooler_hidden_act", "pooler_hidden_size", "legacy"),
    *("problem_type", "hidden_size", "num_labels", "id2label", "label2id"),
}
#: Entries that name the file and its model rather than say how it computes.
EXEMPT = {"architectures", "model_type", "transformers_version"}
#: Entries that no class of transformers 5 names, but that its code reads, or that older files have.
ELDERLY = (
    *("rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"),
    *("position_embedding_type", "torch_dtype", "is_causal", "attention_chunk_size"),
    *("use_sliding_window", "sliding_window", "layer_types", "head_dim", "num_key_value_heads"),
    *("attention_bias", "mlp_bias", "is_decoder", "add_cross_attention", "num_labels"),
    *("tie_word_embeddings", "output_attentions"),
)
_DEBERTA = (
    *("embedding_size", "position_buckets", "norm_rel_ebd", "share_att_key", "attention_head_size"),
    *("conv_kernel_size", "conv_groups", "conv_act", "cls_dropout", "pooler_hidden_size"),
)
#: Values that only mean something together, by family.
TOGETHER: dict[str, tuple[dict[str, Any], ...]] = {
    "deberta-v2": (
        {"conv_kernel_size": 3, "conv_groups": 2, "conv_act": "gelu"},
        {"position_buckets": -1, "max_relative_positions": 3},
        {"share_att_key": False, "pos_att_type": ["c2p"]},
        {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 12},
    ),
    "gpt2": ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},),
    "qwen2": (
        {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 2, "layer_types": DROPPED},
        {"use_sliding_window": False, "layer_types": DROPPED},
    ),
    "qwen3": (
        {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 2, "layer_types": [_FULL, _SLIDING]},
    ),
}
TOGETHER |= dict.fromkeys(
    ("llama", "mistral", "eurobert"),
    (
        {"rope_parameters": DROPPED, "rope_theta": 100.0},
        {"rope_parameters": DROPPED, "rope_theta": 100.0, "rope_scaling": None},
        {"rope_parameters": DROPPED, "rope_theta": 50.0, "rope_scaling": _OLD_YARN},
        {"rope_parameters": _YARN, "original_max_position_embeddings": 3},
        {"rope_parameters": _LLAMA3, "original_max_position_embeddings": 3},
    ),
)
#: In the order in which they are tried.
FAMILIES_HERE = (
    *("bert", "distilbert", "electra", "roberta", "xlm-roberta", "camembert", "albert", "ernie"),
    *("deberta-v2", "gpt2", "llama", "mistral", "qwen2", "qwen3", "eurobert"),
)


class UnfitError(Exception):
    """Transformers does not open what it wrote itself: a mistake of this test."""


def config_keys(family: str) -> list[str]:
    """Every entry that transformers' class has, and those that only its code or older files do."""
    kind = transformers.CONFIG_MAPPING[family]
    named = [field.name for field in dataclasses.fields(kind)]
    more = _DEBERTA if family == "deberta-v2" else ()
    every = dict.fromkeys([*named, *kind.attribute_map, *ELDERLY, *more])
    return [key for key in every if key not in EXEMPT]


def edits_of(family: str, head: str) -> Iterator[dict[str, Any]]:
    """What is changed in a file, one after the other."""
    yield {}
    bare = head == "backbone"
    # All activations are tried once; elsewhere a few tell whether the entry is read.
    activations = (
        (*_ACTIVATIONS, *_OTHER_ACTIVATIONS) if family == "bert" else ("relu", "gelu_fast")
    )
    for key in config_keys(family):
        if not bare and key not in OF_HEADS:
            continue
        values = VALUES[key] or activations
        # Without a size the usual one would count, which is that of a large model.
        size = key in SIZES[family] or key in transformers.CONFIG_MAPPING[family].attribute_map
        for value in (*values, *((None, *(() if size else (DROPPED,))) if bare else ())):
            yield {key: value}
    yield from TOGETHER.get(family, ()) if bare else ()


def published_entries(family: str, head: str) -> dict[str, Any]:
    """A whole `config.json`."""
    layers = FAMILIES[family].backbone.config_class.layer_entries()
    given = {"num_labels": LABELS, "pad_token_id": 0, **SIZES[family], **dict.fromkeys(layers, 2)}
    config = transformers.AutoConfig.for_model(family, **given)
    if head in TWO_OUTPUTS:
        config.num_labels = 2
    config.architectures = [FAMILIES[family].heads[head].architecture]
    entries: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {k: v for k, v in entries.items() if k not in ("transformers_version", "_name_or_path")}


def write_config(folder: Path, entries: Mapping[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(entries), encoding="utf-8")


def drawn(family: str, head: str, folder: Path) -> None:
    """Write random weights for a folder's `config.json`, which stays as it is."""
    path = folder / "config.json"
    text, kind = path.read_text(), getattr(transformers, FAMILIES[family].heads[head].architecture)
    torch.manual_seed(0)
    model = kind(kind.config_class.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
        nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.2)
    model.save_pretrained(folder)
    path.write_text(text)


def theirs_of(family: str, head: str, folder: Path) -> nn.Module:
    """Transformers' model of a folder; its weights are drawn anew where they do not fit."""
    kind: Any = getattr(transformers, FAMILIES[family].heads[head].architecture)
    how: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    try:
        model, info = kind.from_pretrained(folder, output_loading_info=True, **how)
    except RuntimeError:  # of other shapes
        info = {"shapes": ["other"]}
    if any(info.values()):
        drawn(family, head, folder)
        model, info = kind.from_pretrained(folder, output_loading_info=True, **how)
    if any(info.values()):
        raise UnfitError(info)
    return model.eval()  # type: ignore[no-any-return]


def ours_of(head: str, folder: Path) -> nn.Module:
    """Our model of a folder, as `load` opens it; nothing is missing."""
    weights = open_weights(folder)
    entries = settled(read_config(folder), folder, weights)
    sizes = sizes_of(family_of(entries, folder), entries, folder / "config.json")
    family = family_of(sizes.to_dict(), folder)
    model, report = load_into(
        lambda: family.build(sizes, head, LABELS), weights, folder, family, head
    )
    assert report.missing == ()
    return model.eval()


def furthest(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative difference."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


@torch.no_grad()
def wrong(family: str, head: str, base: Path, folder: Path, edits: Mapping[str, Any]) -> str | None:
    """What is wrong with how a file with these entries is read; None: nothing is."""
    shutil.copytree(base, folder, dirs_exist_ok=True)
    entries = {**published_entries(family, head), **edits}
    write_config(folder, {k: v for k, v in entries.items() if v != DROPPED})
    try:
        expected = their_logits(theirs_of(family, head, folder), head, IDS)
    except UnfitError:
        raise
    except Exception:  # whatever transformers says of what makes no sense to it
        expected = None
    try:
        found = our_logits(ours_of(head, folder), head, IDS)
    except CheckpointError as error:
        named = any(key in error.message for key in edits)
        # The head that tells the order of two segments has two labels, or its file does not fit.
        named |= family == "albert" and "sop_classifier" in error.message
        return None if named or expected is None else f"refused without its name: {error.message}"
    if expected is None:
        return None
    close = CLOSE if head == "backbone" else CLOSE_LOGITS
    far = furthest(found, expected)
    return None if far < close else f"differs by {far:.0e}"


@pytest.fixture
def quiet() -> Iterator[None]:
    """Transformers says much about entries that make no sense."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity(transformers.logging.CRITICAL)
    yield
    transformers.utils.logging.set_verbosity(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_an_entry_is_read_as_transformers_reads_it_or_refused_by_name(
    family: str, tmp_path: Path
) -> None:
    faults = []
    for head in (head for name, head in CASES if name == family):
        base = tmp_path / head
        base.mkdir()
        write_config(base, published_entries(family, head))
        drawn(family, head, base)
        every = list(edits_of(family, head))
        for edits in every if ALL else random.Random(head).sample(every, min(SAMPLE, len(every))):
            fault = wrong(family, head, base, tmp_path / "edited", edits)
            faults += [f"{head} {edits}: {fault}"] if fault else []
    assert faults == []
