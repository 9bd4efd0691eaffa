"""A small model in the layout of Helsinki-NLP/opus-mt-*: trained SentencePiece, random weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers
from torch import nn

SOURCES = [
    "A dog runs across the meadow.",
    "Two men are cooking in the kitchen.",
    "A little girl climbs into a playhouse made of wood.",
    "A woman is reading a book.",
    "The dogs are running.",
]
TARGETS = [
    "Ein Hund läuft über die Wiese.",
    "Zwei Männer kochen in der Küche.",
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
    "Eine Frau liest ein Buch.",
    "Die Hunde laufen.",
]
#: The most tokens of a translation, with its start.
LONGEST = 12
#: Of random matrices: far from zero, so that translations differ.
STD = 0.5


def trained(texts: list[str], kind: str) -> bytes:
    """A SentencePiece file."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=90,
        hard_vocab_limit=False,
        num_threads=1,
        model_type=kind,
        minloglevel=2,
    )
    return written.getvalue()


def vocabulary(*files: bytes) -> dict[str, int]:
    """Numbers that are in the order of no file; some pieces of the files have none."""
    pieces = {
        piece
        for file in files
        for model in [sentencepiece.SentencePieceProcessor(model_proto=file)]
        for piece in map(model.id_to_piece, range(3, model.get_piece_size()))
    }
    kept = [piece for i, piece in enumerate(sorted(pieces, key=lambda p: p[::-1])) if i % 9]
    names = ["</s>", "<unk>", "<pad>", *kept, ">>deu<<", ">>nld<<"]
    return {name: number for number, name in enumerate(names)}


def write_tokenizer(folder: Path, *, kind: str = "unigram", separate: bool = False) -> None:
    """Write the files of a `MarianTokenizer`."""
    source, target = (trained(texts, kind) for texts in (SOURCES, TARGETS))
    files: dict[str, Any] = {
        "vocab.json": vocabulary(*([source] if separate else [source, target]))
    }
    settings: dict[str, Any] = {"source_lang": "en", "target_lang": "de"}
    if separate:
        files["target_vocab.json"] = vocabulary(target)
        settings["separate_vocabs"] = True
    for name, content in {**files, "tokenizer_config.json": settings}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)


def write_model(folder: Path, *, pickled: bool = False, **generation: Any) -> None:
    """Write a model with the vocabularies of the tokenizer that lies there."""
    sizes = [
        len(json.loads((folder / name).read_text(encoding="utf-8")))
        for name in ("vocab.json", "target_vocab.json")
        if (folder / name).is_file()
    ]
    pad = 2
    torch.manual_seed(1)
    model = transformers.MarianMTModel(
        transformers.MarianConfig(
            vocab_size=max(sizes),
            decoder_vocab_size=sizes[-1],
            share_encoder_decoder_embeddings=len(sizes) == 1,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            activation_function="swish",
            pad_token_id=pad,
            decoder_start_token_id=pad,
        )
    )
    for name, parameter in model.named_parameters():
        if "embed_positions" not in name:
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            # Where norms and biases vary much, all translations are the same.
            nn.init.normal_(parameter, mean, STD if parameter.ndim == 2 else 0.1)
    nn.init.normal_(model.final_logits_bias, std=0.3)
    model.final_logits_bias[0, pad] += 4.0  # padding is probable, but never written
    model.generation_config = transformers.GenerationConfig(
        **{
            "num_beams": 4,
            "max_length": LONGEST,
            "bad_words_ids": [[pad]],
            "decoder_start_token_id": pad,
            "eos_token_id": 0,
            "forced_eos_token_id": 0,
            "pad_token_id": pad,
            "renormalize_logits": True,
            **generation,
        }
    )
    model.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
