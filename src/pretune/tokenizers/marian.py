"""The tokenizer of OPUS-MT: SentencePiece cuts a text, and `vocab.json` numbers the pieces.

A folder of transformers' `MarianTokenizer` has two SentencePiece files, `source.spm` for the texts
that are read and `target.spm` for those that are written, and one vocabulary for both, which is not
in the order of either; or a second one, `target_vocab.json`, for the target. A piece is looked up
by its text, whichever file it came from: what a vocabulary lacks is `<unk>`. A text may begin with
the language that is wanted, as in `>>fra<< How are you?`: that is a token of the vocabulary, too.

Neither Marian nor transformers changes punctuation (Moses) before that: `MarianTokenizer` has a
method for it, `normalize`, which nothing calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, decoders, models, processors
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.added_tokens import add_listed
from pretune.tokenizers.charsmap import Charsmap
from pretune.tokenizers.engines import SPACE
from pretune.tokenizers.growth import refuse_growth
from pretune.tokenizers.model_types import MARIAN
from pretune.tokenizers.sentencepiece import PieceKind, engine_of, read_sentencepiece
from pretune.tokenizers.tokenizer import DECODER, CutText, Tokenizer

#: The files.
SOURCE, TARGET = "source.spm", "target.spm"
VOCABULARY, TARGET_VOCABULARY = "vocab.json", "target_vocab.json"
#: The special tokens where no file names any.
_TOKENS = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
#: Put before the name of a symbol that no text has.
_UNREACHED = "\uffff"
#: The language that a text is to be translated into, where a model knows several.
_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)


@dataclass(frozen=True)
class SentencePieceCutter:
    """Cuts texts as one SentencePiece file says; see `tokenizer.Cutter`."""

    engine: RustTokenizer  # without the table of replacements
    table: Charsmap
    unknown: int  # id of what the engine cannot spell
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @property
    def rules(self) -> str:
        """What the pieces depend on."""
        return self.engine.to_str() + self.table.text

    def cut(self, texts: Sequence[str], whole: Sequence[str]) -> list[CutText]:
        """Cut texts; `whole` are tokens that stay as they are wherever they stand."""
        parts = [list(_parts(text, whole)) for text in texts]
        plain = [self.table.apply(part) for own in parts for part, _, is_plain in own if is_plain]
        encodings = self.engine.encode_batch([text for text, _ in plain], add_special_tokens=False)
        encoded = zip(plain, encodings, strict=True)
        made = []
        for own in parts:
            cut = CutText([], [])
            for part, start, is_plain in own:
                if is_plain:
                    (normalized, origins), encoding = next(encoded)
                    self._add(cut, start, normalized, origins, encoding)
                else:
                    cut.pieces.append(part)
                    cut.places.append((start, start + len(part)))
            made.append(cut)
        return made

    def _add(
        self, cut: CutText, start: int, text: str, origins: list[int] | None, encoding: Encoding
    ) -> None:
        """Add the pieces of a part, which begins at `start` of the whole text."""
        for number, piece, (first, end) in zip(
            encoding.ids, encoding.tokens, encoding.offsets, strict=True
        ):
            # An unknown character is looked up by itself: BPE has another name for it.
            spelled = text[first:end].replace(" ", SPACE) if number == self.unknown else piece
            if origins is not None:
                # What replaces one character ends where the next one begins.
                last = origins[end - 1] if end > first else origins[first]
                rest = (place for place in origins[end:] if place > last)
                first, end = origins[first], next(rest, last) if end > first else origins[first]
            cut.pieces.append(spelled)
            cut.places.append((start + first, start + end))


def _parts(text: str, whole: Sequence[str]) -> Iterator[tuple[str, int, bool]]:
    """Divide a text: each part, where it begins, and whether it is to be cut into pieces."""
    names = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
    place = 0
    for match in re.finditer(names, text) if names else ():
        yield from _after_language(text[place : match.start()], place)
        yield match[0], match.start(), False
        place = match.end()
    yield from _after_language(text[place:], place)


def _after_language(text: str, start: int) -> Iterator[tuple[str, int, bool]]:
    """Divide a text without whole tokens: the language that it begins with, and the rest."""
    language = _LANGUAGE.match(text)
    if language is not None:
        yield language[0], start, False
    place = 0 if language is None else language.end()
    if place < len(text):
        yield text[place:], start + place, True


def load_marian(folder: Path, settings: Mapping[str, Any], added: Mapping[str, Any]) -> Tokenizer:
    """Load the tokenizers of source and target.

    Args:
        folder: of the files.
        settings: the content of `tokenizer_config.json`, with the special tokens.
        added: the content of `added_tokens.json`.

    Raises:
        CheckpointError: a file is missing or damaged; names it.
    """
    separate = settings.get("separate_vocabs") is True
    names = [SOURCE, TARGET, VOCABULARY, *([TARGET_VOCABULARY] if separate else ())]
    files = {name: _bytes(folder / name) for name in names}
    special = {name: _text(settings.get(name, usual)) for name, usual in _TOKENS.items()}
    settings = {**settings, "tokenizer_class": MARIAN, **special}
    # One vocabulary for both sides, or one for each; two ways to cut a text in any case.
    engine = _engine(folder / VOCABULARY, files[VOCABULARY], settings, added)
    other = engine
    if separate:
        # The list of added tokens has the numbers of the source.
        own = {name: value for name, value in settings.items() if name != DECODER}
        other = _engine(folder / TARGET_VOCABULARY, files[TARGET_VOCABULARY], own, {})
    cutters = {name: _cutter(folder / name, files) for name in (SOURCE, TARGET)}
    target = Tokenizer(other, {**special}, cutter=cutters[TARGET], origin=folder / VOCABULARY)
    return Tokenizer(
        engine,
        special,
        dict(settings),
        target=target,
        origin=folder / VOCABULARY,
        cutter=cutters[SOURCE],
    )


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing; a tokenizer of Marian is {SOURCE}, {TARGET} and {VOCABULARY}, or "
            f"with separate_vocabs also {TARGET_VOCABULARY}",
            "Copy the folder again, with all of its files.",
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None


def _text(token: object) -> str:
    """The text of a special token in the short or the long form."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _cutter(path: Path, files: Mapping[str, bytes]) -> SentencePieceCutter:
    """Make the cutter of a file; nothing in a text is taken for one of its control symbols."""
    file = read_sentencepiece(path)
    refuse_growth(path, engine_of(file))
    hidden = (PieceKind.CONTROL, PieceKind.UNKNOWN)
    pieces = tuple(
        replace(piece, text=_UNREACHED + piece.text) if piece.kind in hidden else piece
        for piece in file.pieces
    )
    engine = engine_of(replace(file, pieces=pieces, charsmap=b""))
    return SentencePieceCutter(engine, Charsmap(file.charsmap), file.unknown, files)


def _engine(
    path: Path, content: bytes, settings: Mapping[str, Any], added: Mapping[str, Any]
) -> RustTokenizer:
    """Numbers pieces, and joins them to texts again; it cuts nothing."""
    vocabulary = _vocabulary(path, content)
    names = {name: _text(settings.get(name)) for name in _TOKENS}
    missing = [token or name for name, token in names.items() if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{path}: not a vocabulary of Marian: it lacks {' and '.join(missing)}",
            "Copy the folder again, with all of its files.",
        )
    engine = RustTokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    engine.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    add_listed(engine, path.parent, settings, others=added)
    engine.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in names.values()]
    )
    end = names["eos_token"]
    engine.post_processor = processors.TemplateProcessing(
        single=["$A", end],
        pair=["$A", "$B", end],
        special_tokens=[(end, vocabulary[end])],
    )
    return engine


def _vocabulary(path: Path, content: bytes) -> dict[str, int]:
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    if not isinstance(values, dict) or not all(
        type(number) is int and 0 <= number < 2**31 for number in values.values()
    ):
        raise CheckpointError(
            f"{path}: expected an object with a number for each token", "Copy the file again."
        )
    if len(set(values.values())) < len(values):
        raise CheckpointError(f"{path}: two tokens have the same number", "Copy the file again.")
    return values
