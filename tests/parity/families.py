"""Every family with every head, ours beside transformers', both ways.

Run it for the table:

python tests/parity/families.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from pretune.checkpoints.config import family_of, read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.models.bert import BertPreTraining
from pretune.models.encoder_decoder import EncoderDecoder, SourceReader
from pretune.models.families import FAMILIES

LABELS = 5
LENGTHS = (7, 1, 12, 3)

_T5 = {
    "vocab_size": 53,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 0,
}
_ENCODER: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 3,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
del _DECODER["type_vocab_size"]

#: Small, and odd enough that a mix-up of sizes shows.
SIZES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "distilbert": {
        "vocab_size": 53,
        "dim": 24,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 40,
        "max_position_embeddings": 20,
    },
    "electra": {**_ENCODER, "embedding_size": 12},
    # Token 1 is among the tokens of the texts: positions pass over it.
    "roberta": {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 1},
    "xlm-roberta": {**_ENCODER, "pad_token_id": 1},
    "camembert": {**_ENCODER, "type_vocab_size": 1, "pad_token_id": 4},
    "albert": {**_ENCODER, "embedding_size": 12},
    "ernie": {**_ENCODER, "use_task_id": True},
    "deberta-v2": {
        **_ENCODER,
        "type_vocab_size": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
    # Of the grouped kind, with heads that are wider than the hidden size gives.
    "eurobert": {**_DECODER, "head_dim": 8},
    "gemma3_text": {
        **_DECODER,
        "head_dim": 8,
        "sliding_window": 4,
        "query_pre_attn_scalar": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gpt2": {"vocab_size": 53, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 20},
    "llama": {**_DECODER, "tie_word_embeddings": True, "attention_bias": True},
    "mistral": {**_DECODER, "sliding_window": 4},
    "qwen2": {
        **_DECODER,
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
    },
    "qwen3": {**_DECODER, "head_dim": 8, "tie_word_embeddings": True},
    "marian": {
        "vocab_size": 53,
        "d_model": 24,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "decoder_ffn_dim": 36,
        "max_position_embeddings": 20,
        "activation_function": "swish",
        "scale_embedding": True,
        "decoder_start_token_id": 0,
    },
    # Texts are longer than what its local layers see.
    "modernbert": {
        "vocab_size": 53,
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
        "local_attention": 4,
    },
    "t5": _T5,
    "mt5": _T5,
}
#: Families that read a source and a target.
PAIRS = ("marian", "t5", "mt5")

#: Heads with two outputs, however many labels there are.
TWO_OUTPUTS = ("question_answering", "pretraining")

#: A conditional random field and a policy's values are nothing that transformers has. Only ELECTRA
#: has a class of its own for replaced tokens: elsewhere it is that for the classes of tokens.
CASES = [
    (name, head)
    for name in SIZES
    for head in FAMILIES[name].heads
    if not head.endswith(("_crf", "actor_critic"))
    and (head != "replaced_tokens" or name == "electra")
]


@dataclass(frozen=True)
class Parity:
    """The largest absolute differences of one family and head.

    Attributes:
        reading: our model of their checkpoint against theirs.
        writing: their model of our checkpoint against ours.
    """

    family: str
    head: str
    reading: float
    writing: float


def published(family: str, head: str, **more: Any) -> nn.Module:
    """Transformers' model with random weights, biases and LayerNorms too."""
    architecture = FAMILIES[family].heads[head].architecture
    entries = {"num_labels": LABELS, "pad_token_id": 0, **SIZES[family], **more}
    config = transformers.AutoConfig.for_model(family, **entries)
    if head in TWO_OUTPUTS:
        config.num_labels = 2
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config)
    for name, parameter in model.named_parameters():
        norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
        if "embed_positions" not in name:  # sinusoids
            nn.init.normal_(
                parameter, mean=1.0 if norm and family != "gemma3_text" else 0.0, std=0.2
            )
    if family == "marian" and head == "translation":
        nn.init.normal_(model.final_logits_bias)
    return model.eval()


def ours_of(folder: Path, family: str, head: str) -> nn.Module:
    """Our model from a folder; nothing may be missing or left over."""
    entries = read_config(folder)
    known = family_of(entries, folder)
    config = known.backbone.config_class.from_dict(entries)

    model, report = load_into(
        lambda: known.build(config, head, LABELS), open_weights(folder), folder, known, head
    )
    assert report.missing == ()
    assert report.unexpected == ()
    return model.eval()


def sides(ids: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Pairs of a source and a target: of all sequences, and of all in the reverse order."""
    return list(zip(ids, reversed(ids), strict=True))


def pair_batch(pairs: list[tuple[list[int], list[int]]]) -> PackedBatch:
    """Pairs, as a translator reads them."""
    features = [
        Feature(tokens=[*source, *target], choices=(len(source), len(target)))
        for source, target in pairs
    ]
    return FeatureSet.of(features).batch(np.arange(len(features)), sort=False)


def their_logits(model: nn.Module, head: str, ids: list[list[int]]) -> list[Tensor]:
    """One sequence at a time: no padding, no mask."""
    outputs = []
    if model.config.model_type in PAIRS:
        for source, target in sides(ids):
            given = {"decoder_input_ids": torch.tensor([target])}
            found = model(torch.tensor([source]), **given)
            outputs.append((found.last_hidden_state if head == "backbone" else found.logits)[0])
        return outputs
    for one in ids:
        # Of multiple choice, one choice: `[1, 1, L]`.
        found = model(torch.tensor([[one]] if head == "multiple_choice" else [one]))
        if head == "question_answering":
            outputs.append(torch.stack([found.start_logits[0], found.end_logits[0]], -1))
        elif head == "pretraining":
            pairs = "sop_logits" if hasattr(found, "sop_logits") else "seq_relationship_logits"
            outputs += [found.prediction_logits[0], found[pairs][0]]
        elif head == "backbone":
            outputs.append(found.last_hidden_state[0])
            if getattr(found, "pooler_output", None) is not None:
                outputs.append(found.pooler_output[0])
        else:
            outputs.append(found.logits[0])
    return outputs


def our_logits(model: nn.Module, head: str, ids: list[list[int]]) -> list[Tensor]:
    """All sequences in one packed batch, taken apart."""
    if isinstance(model, SourceReader | EncoderDecoder):
        batch = pair_batch(sides(ids))
        found = model(batch)
        hidden = found if isinstance(found, Tensor) else found.last_hidden_state
        return list(hidden.split(batch.pairs[1].layout.lengths))
    batch = PackedBatch.of(ids)
    lengths = batch.layout.lengths
    if head == "backbone":
        output = model(batch)
        hidden = output.last_hidden_state.split(lengths)
        if output.pooler_output is None:
            return list(hidden)
        return [x for pair in zip(hidden, output.pooler_output, strict=True) for x in pair]
    if isinstance(model, BertPreTraining):
        both = model(batch, both=True)
        tokens = both.predictions.split(lengths)
        return [x for pair in zip(tokens, both.seq_relationship_logits, strict=True) for x in pair]
    logits = model(batch).logits if head == "replaced_tokens" else model(batch)
    pooled = head in ("sequence_classification", "multiple_choice")
    return list(logits) if pooled else list(logits.split(lengths))


def difference(one: list[Tensor], two: list[Tensor]) -> float:
    assert len(one) == len(two)
    assert all(a.shape == b.shape for a, b in zip(one, two, strict=True))
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def compare(family: str, head: str, seed: int = 0) -> Parity:
    """Read what they wrote, write what they read."""
    torch.manual_seed(seed)
    ids = [torch.randint(1, 53, (length,)).tolist() for length in LENGTHS]
    theirs = published(family, head)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs.save_pretrained(folder)
        ours = ours_of(folder, family, head)
        known = family_of(read_config(folder), folder)
    reading = difference(our_logits(ours, head, ids), their_logits(theirs, head, ids))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pad = SIZES[family].get("pad_token_id", 0)
        entries = {"id2label": {i: str(i) for i in range(LABELS)}, "pad_token_id": pad}
        save_model(ours, folder, known, head, {} if head in TWO_OUTPUTS else entries)
        kind = getattr(transformers, FAMILIES[family].heads[head].architecture)
        again, info = kind.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
        # MarianModel misses the sinusoids that it computes itself, as MarianMTModel knows.
        missing = [name for name in info["missing_keys"] if "embed_positions" not in name]
        assert not any((missing, info["unexpected_keys"], info["mismatched_keys"]))
        with safe_open(folder / "model.safetensors", "pt") as handle:
            names = handle.keys()
            shapes = {name: list(handle.get_slice(name).get_shape()) for name in names}
    table = [53, SIZES[family].get("embedding_size", 24)]
    tables = [name for name, shape in shapes.items() if shape == table]
    tied = getattr(ours, "ties_output", True)
    assert len(tables) == (1 if tied else 2), "a tied table is stored once"
    writing = difference(our_logits(ours, head, ids), their_logits(again.eval(), head, ids))
    return Parity(family, head, reading, writing)


def main() -> None:
    """Print the table."""
    print("| family | head | our model of their checkpoint | their model of ours |")
    print("|---|---|---:|---:|")
    for family, head in CASES:
        found = compare(family, head)
        name = FAMILIES[family].heads[head].architecture
        print(f"| {family} | {name} | {found.reading:.1e} | {found.writing:.1e} |")


if __name__ == "__main__":
    main()
