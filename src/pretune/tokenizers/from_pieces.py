"""Tokenizers of folders with no `tokenizer.json`, but the SentencePiece file of their class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from pretune.errors import CheckpointError
from pretune.tokenizers.class_rules import CLASS_RULES, ClassRules
from pretune.tokenizers.engines import UNREACHED
from pretune.tokenizers.folder_files import (
    class_of_folder,
    described_settings,
    of_another_class,
    of_class,
)
from pretune.tokenizers.growth import refuse_growth
from pretune.tokenizers.model_types import PIECES, PLAIN
from pretune.tokenizers.sentencepiece import (
    PieceKind,
    SentencePieceFile,
    engine_of,
    merges_of,
    precompiled,
    read_sentencepiece,
)
from pretune.tokenizers.tokenizer import Tokenizer


def pieces_in(folder: Path, settings: Mapping[str, Any]) -> Path:
    """The SentencePiece file of a folder that has any.

    Raises:
        CheckpointError: there are files of which no class of this name reads any, or several.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in PIECES and path.is_file())
    kind, _ = class_of_folder(folder, settings)
    if kind is None and len(files) == 1:
        return files[0]
    if kind is None:
        raise CheckpointError(
            f"{folder}: {len(files)} SentencePiece files, and nothing says which is for what",
            f"Give the file that you mean, such as {files[0]}, or copy the config.json of its "
            "model too.",
        )
    expected = _rules_for_pieces(files[0], kind).pieces
    if folder / str(expected) not in files:
        raise CheckpointError(
            f"{folder}: a {kind} has its vocabulary in {expected}, which is missing",
            f"If {files[0].name} is that file, rename it; otherwise copy the folder again.",
        )
    return folder / str(expected)


def _rules_for_pieces(path: Path, kind: str | None) -> ClassRules:
    rules = CLASS_RULES.get(kind)
    if rules is None or rules.pieces is None:
        readable = {name for name, rules in CLASS_RULES.items() if name and rules.pieces}
        raise of_another_class(path.parent, f"{path.name} is", kind, readable)
    return rules


def from_pieces(path: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a SentencePiece file: as its class reads it, or as SentencePiece does."""
    file = read_sentencepiece(path)
    kind, _ = class_of_folder(path.parent, settings)
    if kind is None:
        engine = engine_of(file)
        refuse_growth(path, engine)
        roles = {"unk": file.unknown, "bos": file.begin, "eos": file.end, "pad": file.pad}
        special = {
            f"{name}_token": file.pieces[i].text for name, i in roles.items() if i is not None
        }
        return Tokenizer(engine, special, {**settings, "tokenizer_class": PLAIN}, origin=path)
    rules = _rules_for_pieces(path, kind)
    if (rules.model is models.BPE) != (file.model == "bpe"):
        raise CheckpointError(
            f"{path}: a SentencePiece model of the kind {file.model}, but that of a {kind} is of "
            f"the other kind",
            "Copy the folder again, or name the right class in tokenizer_config.json.",
        )
    # Its symbols are never divided, and those that only control a model are no text.
    symbols = [
        {"content": piece.text, "normalized": False, "special": piece.kind is PieceKind.CONTROL}
        for piece in file.pieces
        if piece.kind in (PieceKind.CONTROL, PieceKind.USER_DEFINED)
    ]
    named = {**rules.tokens, **rules.complete(described_settings(path.parent, settings), symbols)}
    engine = _vocabulary_engine(file, rules, named)
    refuse_growth(path, engine)
    return of_class(path, engine, settings, kind, None, symbols)


def _vocabulary_engine(
    file: SentencePieceFile, rules: ClassRules, settings: Mapping[str, Any]
) -> RustTokenizer:
    """An engine with the vocabulary that a class makes of a SentencePiece file."""
    scores = [(piece.text, piece.score) for piece in file.pieces]
    if rules.model is models.Unigram and rules.vocabulary is not None:
        scores = rules.vocabulary(scores, settings)
    ids = {text: number for number, (text, _) in enumerate(scores)}
    # The rules of the class for spelling, from the start: to change them later takes longer.
    usual: Any = rules.rules(settings, RustTokenizer(models.WordLevel(ids))).model
    if rules.model is models.BPE:
        # The lower the number of an entry, the earlier it was merged.
        merges = merges_of(ids, {text: -number for text, number in ids.items()})
        spelling = {"fuse_unk": usual.fuse_unk, "byte_fallback": usual.byte_fallback}
        return RustTokenizer(models.BPE(ids, merges, **spelling))
    # The unknown token is the one that the class takes, wherever the file has it.
    (unknown,) = usual.tokenize(UNREACHED)
    engine = RustTokenizer(models.Unigram(scores, unk_id=unknown.id))
    if file.charsmap:
        engine.normalizer = precompiled(file.path, file.charsmap)
    return engine
