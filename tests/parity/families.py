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

from pretune.checkpoints.config import read_config
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.models.bert import BertPreTraining
from pretune.models.families import FAMILIES
from pretune.models.transformer import TransformerModel, Translator

LABELS = 5
LENGTHS = (7, 1, 12, 3)

#: Small, and odd enough that a mix-up of sizes shows.
SIZES: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 53,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
        "type_vocab_size": 3,
    },
    "distilbert": {
        "vocab_size": 53,
        "dim": 24,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 40,
        "max_position_embeddings": 20,
    },
    "electra": {
        "vocab_size": 53,
        "embedding_size": 12,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 20,
        "type_vocab_size": 3,
    },
    "gpt2": {"vocab_size": 53, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 20},
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
}
#: Families that read a source and a target.
PAIRS = ("marian",)

#: A conditional random field and a policy's values are nothing that transformers has.
CASES = [
    (name, head)
    for name in SIZES
    for head in FAMILIES[name].heads
    if not head.endswith(("_crf", "actor_critic"))
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
    config = transformers.AutoConfig.for_model(
        family, **SIZES[family], num_labels=LABELS, pad_token_id=0, **more
    )
    if head == "question_answering":
        config.num_labels = 2
    config._attn_implementation = "eager"
    model = getattr(transformers, architecture)(config)
    for name, parameter in model.named_parameters():
        norm = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
        if "embed_positions" not in name:  # sinusoids
            nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.2)
    if head == "translation":
        nn.init.normal_(model.final_logits_bias)
    return model.eval()


def ours_of(folder: Path, family: str, head: str) -> nn.Module:
    """Our model from a folder; nothing may be missing or left over."""
    known = FAMILIES[family]
    config = known.backbone.config_class.from_dict(read_config(folder))

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
            outputs += [found.prediction_logits[0], found.seq_relationship_logits[0]]
        elif head == "backbone":
            outputs.append(found.last_hidden_state[0])
            if getattr(found, "pooler_output", None) is not None:
                outputs.append(found.pooler_output[0])
        else:
            outputs.append(found.logits[0])
    return outputs


def our_logits(model: nn.Module, head: str, ids: list[list[int]]) -> list[Tensor]:
    """All sequences in one packed batch, taken apart."""
    if isinstance(model, Translator | TransformerModel):
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
    logits = model(batch)
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
    reading = difference(our_logits(ours, head, ids), their_logits(theirs, head, ids))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        labels = {"id2label": {i: str(i) for i in range(LABELS)}, "pad_token_id": 0}
        save_model(
            ours, folder, FAMILIES[family], head, {} if head == "question_answering" else labels
        )
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
    assert len(tables) == 1, "the tied table is stored once"
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
