"""Small translators for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretune.bundle.bundle import Bundle, load, save
from pretune.data.records import Records
from pretune.tasks.translation.translate import Translate, TranslateOptions
from pretune.tokenizers.train import train_tokenizer

PAIRS = [
    ("Ein Hund läuft über die Wiese.", "A dog runs across the meadow."),
    ("Zwei Männer kochen.", "Two men are cooking."),
    (
        "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
        "A little girl climbs into a playhouse.",
    ),
    ("Eine Frau liest ein Buch.", "A woman is reading a book."),
    ("Hunde.", "Dogs."),
]
SIZES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


def records(pairs: list[tuple[Any, Any]] = PAIRS) -> Records:
    rows = [{"source": source, "target": target} for source, target in pairs]
    return Records(rows, "pairs.tsv", range(2, len(rows) + 2), ("source", "target"))


def translator(kind: str = "bpe", *, options: dict[str, Any] | None = None, **more: Any) -> Bundle:
    """A model of random weights, far from zero, with a vocabulary of the pairs."""
    task = Translate(TranslateOptions(**{"max_length": 40, **(options or {})}))
    texts = [text for pair in PAIRS for text in pair]
    size = {"bpe": 300, "wordpiece": 120}[kind]
    torch.manual_seed(0)
    bundle = load(
        "transformer-small",
        task=task,
        tokenizer=train_tokenizer(texts, kind, size),
        config={**SIZES, **more},
    )
    for name, parameter in bundle.model.named_parameters():
        if parameter.requires_grad:
            norm = "norm" in name and name.endswith("weight")
            nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)
    bundle.model.eval()
    return bundle


def saved(folder: Path, bundle: Bundle) -> Path:
    folder.mkdir()
    save(bundle, folder)
    return folder
