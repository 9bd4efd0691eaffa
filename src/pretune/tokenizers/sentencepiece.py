"""SentencePiece's files (`.spm`, `.model`), read without its library; nothing in them is run.

Such a file is a protocol buffer: pieces with their scores, how the model was trained, and how texts
are normalized. Source: `sentencepiece_model.proto` of https://github.com/google/sentencepiece;
Kudo and Richardson 2018. Nothing in a file is trusted: every size is checked against the bytes that
are there before anything of that size is made.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Literal

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.text.file_kinds import refuse_lfs_pointer
from pretune.text.protobuf import MalformedError, as_message, as_number, read_fields
from pretune.tokenizers.engines import SPACE, UNREACHED

#: The most bytes of a file: the largest published one, of 256,000 pieces, has 5 MB.
LARGEST_FILE = 2**27
#: The most pieces; the largest published vocabularies have 256,000.
MOST_PIECES = 2**20
#: The most characters of a piece that merges make: SentencePiece itself trains no longer ones. All
#: ways to divide a piece are tried, so that the time grows with the square of its length.
LONGEST_MERGED = 512
#: How SentencePiece numbers the kinds of models.
_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class PieceKind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2  # stands for characters that no piece spells
    CONTROL = 3  # never comes from a text: the beginning and the end
    USER_DEFINED = 4  # never divided
    UNUSED = 5
    BYTE = 6  # a byte of a character that no other piece spells


_KINDS = {kind.value: kind for kind in PieceKind}


@dataclass(frozen=True, slots=True)
class SentencePiece:
    """An entry of a vocabulary; its id is its place."""

    text: str
    score: float  # the logarithm of its probability; for BPE minus the number of its merge
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """What a SentencePiece model file says."""

    path: Path
    pieces: tuple[SentencePiece, ...]
    model: Literal["unigram", "bpe"]
    byte_fallback: bool  # whether characters that no piece spells become bytes
    unknown: int  # id of the piece for what cannot be spelled
    begin: int | None  # id of the piece for the beginning of a text
    end: int | None
    pad: int | None
    # The table of replacements that texts go through first, as `normalizers.Precompiled` takes it;
    # empty: texts stay as they are.
    charsmap: bytes
    add_dummy_prefix: bool  # whether a space is put before a text
    remove_extra_whitespaces: bool  # whether spaces around a text and repeated ones are dropped
    escape_whitespaces: bool  # whether spaces become `SPACE`
    whitespace_as_suffix: bool  # whether pieces end in their space instead of beginning with it
    denormalizes: bool  # whether texts that are put together go through a table of their own

    def kinds(self, kind: PieceKind) -> list[str]:
        """The texts of the pieces of a kind, by id."""
        return [piece.text for piece in self.pieces if piece.kind is kind]


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Read a SentencePiece model file.

    Raises:
        CheckpointError: it cannot be read, is damaged or too large, or has a model of words or of
            characters.
    """
    refuse_lfs_pointer(path)
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST_FILE else b""
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None
    try:
        if size > LARGEST_FILE:
            raise MalformedError(f"it has over {LARGEST_FILE:,} bytes")
        return _parsed(path, data)
    except MalformedError as error:
        raise CheckpointError(
            f"{path}: not a SentencePiece model that can be read ({error})",
            "Copy the file again; it may be cut off.",
        ) from None


def _parsed(path: Path, data: bytes) -> SentencePieceFile:
    pieces: list[SentencePiece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    denormalizer: dict[int, int | bytes] = {}
    for number, value in read_fields(data):
        if number == 1:
            if len(pieces) == MOST_PIECES:
                raise MalformedError(f"it has over {MOST_PIECES:,} pieces")
            pieces.append(_piece(as_message(value)))
        elif number == 2:
            trainer |= dict(read_fields(as_message(value)))
        elif number == 3:
            normalizer |= dict(read_fields(as_message(value)))
        elif number == 5:
            denormalizer |= dict(read_fields(as_message(value)))
    kind = as_number(trainer.get(3, 1))
    if _MODELS.get(kind) in ("word", "char"):
        raise CheckpointError(
            f"{path}: a SentencePiece model of the kind '{_MODELS[kind]}', which cannot be read",
            "Those of the kinds unigram and bpe can. `pretune tokenizer TEXTS --kind char` makes "
            "a tokenizer of characters.",
        )
    byte_fallback = _flag(trainer, 35, default=False)
    unknown = _checked(pieces, byte_fallback=byte_fallback)
    if _MODELS.get(kind) == "bpe":
        _refuse_endless(pieces)
    ids = {piece.text: number for number, piece in enumerate(pieces)}

    def control(field: int, usual: str) -> int | None:
        """The id of a control piece that the file names."""
        name = as_message(trainer.get(field, usual.encode())).decode(errors="replace")
        place = ids.get(name)
        return place if place is not None and pieces[place].kind is PieceKind.CONTROL else None

    return SentencePieceFile(
        path=path,
        pieces=tuple(pieces),
        model="unigram" if _MODELS.get(kind) == "unigram" else _bpe(kind),
        byte_fallback=byte_fallback,
        unknown=unknown,
        begin=control(46, "<s>"),
        end=control(47, "</s>"),
        pad=control(48, "<pad>"),
        charsmap=_charsmap(as_message(normalizer.get(2, b""))),
        add_dummy_prefix=_flag(normalizer, 3, default=True),
        remove_extra_whitespaces=_flag(normalizer, 4, default=True),
        escape_whitespaces=_flag(normalizer, 5, default=True),
        whitespace_as_suffix=_flag(trainer, 24, default=False),
        denormalizes=bool(as_message(denormalizer.get(2, b""))),
    )


def _bpe(kind: int) -> Literal["bpe"]:
    if _MODELS.get(kind) != "bpe":
        raise MalformedError(f"a model of the unknown kind {kind}")
    return "bpe"


def _flag(fields: dict[int, int | bytes], number: int, *, default: bool) -> bool:
    return as_number(fields.get(number, int(default))) != 0


def _piece(data: bytes) -> SentencePiece:
    # Nearly all are laid out in one way: the text, and a number of four bytes. This is faster.
    if len(data) > 6 and data[0] == 0x0A and 0x80 > data[1] == len(data) - 7 and data[-5] == 0x15:
        text, score, kind = data[2:-5], struct.unpack_from("<f", data, len(data) - 4)[0], 1
    else:
        fields = dict(read_fields(data))
        text = as_message(fields.get(1, b""))
        kind = as_number(fields.get(3, 1))
        bits = as_number(fields.get(2, 0))
        if bits >= 2**32:
            raise MalformedError("the score of a piece is no number of four bytes")
        score = struct.unpack("<f", bits.to_bytes(4, "little"))[0]
    if not math.isfinite(score):
        raise MalformedError(f"a piece has the score {score}")
    if kind not in _KINDS:
        raise MalformedError(f"a piece of the unknown kind {kind}")
    try:
        return SentencePiece(text.decode(), score, _KINDS[kind])
    except UnicodeDecodeError:
        raise MalformedError(f"a piece is not UTF-8: {text[:40]!r}") from None


def _checked(pieces: list[SentencePiece], *, byte_fallback: bool) -> int:
    """Check that pieces make a vocabulary, as SentencePiece does; return the unknown's id."""
    if not pieces:
        raise MalformedError("it has no pieces")
    if len({piece.text for piece in pieces}) < len(pieces):
        raise MalformedError("a piece is there twice")
    if not all(piece.text for piece in pieces):
        raise MalformedError("a piece is empty")
    unknown = [i for i, piece in enumerate(pieces) if piece.kind is PieceKind.UNKNOWN]
    if len(unknown) != 1:
        raise MalformedError(f"it has {len(unknown)} pieces for what is unknown, not 1")
    spelled = {piece.text for piece in pieces if piece.kind is PieceKind.BYTE}
    if spelled != ({*_BYTES} if byte_fallback else set()):
        raise MalformedError("its pieces for bytes are not the 256 that there are")
    return unknown[0]


def _refuse_endless(pieces: list[SentencePiece]) -> None:
    """Refuse pieces that no training makes, and that would take hours to divide."""
    made = (len(piece.text) for piece in pieces if piece.kind is PieceKind.NORMAL)
    if (longest := max(made, default=0)) > LONGEST_MERGED:
        raise MalformedError(f"a piece of {longest:,} characters, over {LONGEST_MERGED}")


def _charsmap(table: bytes) -> bytes:
    """Check a table of replacements: the size of a trie, the trie, and texts."""
    if table and not 4 <= 4 + int.from_bytes(table[:4], "little") <= len(table):
        raise MalformedError("its table of replacements is cut off")
    return table


def engine_of(file: SentencePieceFile) -> RustTokenizer:
    """Make an engine that cuts texts as SentencePiece does, with nothing around a text.

    Control symbols in a text are taken for themselves, as everywhere in Hugging Face's tools.

    Raises:
        CheckpointError: the file asks for something that the engine cannot do.
    """
    scores = list(unigram_scores(file))
    if file.model == "unigram":
        model: models.Model = models.Unigram(
            scores, unk_id=file.unknown, byte_fallback=file.byte_fallback
        )
    else:
        if symbols := file.kinds(PieceKind.USER_DEFINED):
            raise _cannot(file, f"BPE with user-defined symbols, such as {symbols[0]!r}")
        ids = {text: number for number, (text, _) in enumerate(scores)}
        ranked = {p.text: p.score for p in file.pieces if p.kind is PieceKind.NORMAL}
        model = models.BPE(
            ids,
            merges_of(ids, ranked),
            unk_token=file.pieces[file.unknown].text,
            fuse_unk=True,
            byte_fallback=file.byte_fallback,
        )
    engine = RustTokenizer(model)
    set_rules(engine, file)
    engine.add_special_tokens(
        [p.text for p in file.pieces if p.kind in (PieceKind.CONTROL, PieceKind.UNKNOWN)]
    )
    return engine


def unigram_scores(file: SentencePieceFile) -> Iterator[tuple[str, float]]:
    """The entries of a vocabulary with their scores, as a Unigram model takes them.

    User-defined symbols get the score that SentencePiece gives them, and unused pieces a name that
    occurs in no text.
    """
    best = max((p.score for p in file.pieces if p.kind is PieceKind.NORMAL), default=0.0)
    for piece in file.pieces:
        if piece.kind is PieceKind.USER_DEFINED:
            yield piece.text, len(piece.text.encode()) * best - 0.1
        elif piece.kind is PieceKind.UNUSED:
            yield UNREACHED + piece.text, piece.score
        else:
            yield piece.text, piece.score


def merges_of(ids: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges that make a vocabulary of BPE, in the order of the scores of what they make.

    Args:
        ids: all entries.
        scores: those that merges may make, with their scores; the highest is merged first.
    """
    merges = []
    # Longer ones are symbols, which are found as a whole.
    made = [text for text in scores if len(text) <= LONGEST_MERGED]
    for whole in sorted(made, key=lambda text: -scores[text]):
        pairs = [(whole[:cut], whole[cut:]) for cut in range(1, len(whole))]
        merges += [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    return merges


def set_rules(engine: RustTokenizer, file: SentencePieceFile) -> None:
    """Give an engine SentencePiece's rules from a text to its pieces, and back.

    Raises:
        CheckpointError: the file asks for something that the engine cannot do.
    """
    if file.whitespace_as_suffix:
        raise _cannot(file, "spaces after words (treat_whitespace_as_suffix)")
    if file.denormalizes:
        raise _cannot(file, "a table that changes what is put together (denormalizer_spec)")
    space = SPACE if file.escape_whitespaces else " "
    # From a text to a row of pieces: the table, then spaces, then the mark for a space.
    steps: list[normalizers.Normalizer] = []
    if file.charsmap:
        steps.append(precompiled(file.path, file.charsmap))
    if file.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if file.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if file.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE))
    engine.normalizer = normalizers.Sequence(steps)
    # Where no piece goes over the end of a word, words are cut by themselves, which is faster.
    texts = {piece.text for piece in file.pieces}
    if space in texts and not any(space in text[1:] for text in texts):
        engine.pre_tokenizer = pre_tokenizers.Split(space, "merged_with_next")
    # And back.
    back: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if file.byte_fallback:
        back.append(decoders.ByteFallback())
    back.append(decoders.Fuse())
    if file.add_dummy_prefix:
        back.append(decoders.Strip(" ", 1, 0))
    engine.decoder = decoders.Sequence(back)


def precompiled(path: Path, charsmap: bytes) -> normalizers.Normalizer:
    """Make the normalizer of a table of replacements.

    It replaces letter by letter with its marks, where SentencePiece takes the longest entry: of a
    full-width letter with a combining mark, and of a carriage return with a line feed, the second
    is lost, as in all of Hugging Face's tools.

    Raises:
        CheckpointError: the table is damaged.
    """
    try:
        return normalizers.Precompiled(charsmap)
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(
            f"{path}: its table of replacements cannot be read ({error})", "Copy the file again."
        ) from None


def _cannot(file: SentencePieceFile, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: a SentencePiece model with {what}, which cannot be read",
        "Take a tokenizer.json of the same model instead, which says how else its texts are cut.",
    )
