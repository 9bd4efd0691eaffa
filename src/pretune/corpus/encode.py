"""From the text of one document to its tokens: what every engine computes, in whatever process."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from pretune.corpus.dedupe import Signature, digest, signature
from pretune.data.arrays import Array
from pretune.text.sentence_ends import sentence_spans
from pretune.tokenizers.engines import literal_engine
from pretune.tokenizers.tokenizer import explained
from pretune.tokenizers.unknown import DroppedCharacters

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# The C0 and C1 controls except tab and line feed, and the byte order mark. Format characters stay:
# they hold emoji together (U+200D) and separate letters in Persian (U+200C).
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SPACES = re.compile(r"[^\S\n]+")
_WIDE = (
    "[\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60"
    "\U00020000-\U0003ffff]"
)
# Chinese and Western texts share these characters: they are as wide as what is next to them.
_EITHER = "[“”‘’…—·]"
_BETWEEN_WIDE = re.compile(
    rf"(?<={_WIDE})\n(?={_WIDE}|{_EITHER})|(?<={_EITHER})\n(?={_WIDE})"
    rf"|(?<={_WIDE}{_EITHER})\n(?={_EITHER}{_WIDE})"
)
_SINGLE_BREAK = re.compile(r"(?<=[^\n])\n(?=[^\n])")


@dataclass(frozen=True)
class Cleaning:
    """The steps that clean a text, in this order."""

    nfc: bool = True  # normalize to Unicode's NFC, so that é is one character however it was typed
    control: bool = True  # remove control characters, and turn other line breaks into line feeds
    spaces: bool = True  # collapse every run of spaces and tabs into one space, and strip lines
    # Join lines that were wrapped at a column: a single line break becomes a space, or nothing
    # between Chinese characters and their punctuation; blank lines stay.
    join_lines: bool = False
    repeated_lines: bool = False  # drop a line that occurred in the document before
    min_chars: int = 1  # drop a document with fewer characters


def clean(text: str, options: Cleaning) -> tuple[str, list[str]]:
    """The cleaned text of a document, and the names of the steps that changed it."""
    changed = []
    for name, step in _STEPS.items():
        if getattr(options, name):
            after = step(text)
            if after != text:
                changed.append(name)
                text = after
    return text, changed


def _spaces(text: str) -> str:
    lines = _SPACES.sub(" ", text).split("\n")
    return "\n".join(line.strip(" ") for line in lines).strip("\n")


def _repeated_lines(text: str) -> str:
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        words = line.strip()
        if not words or words not in seen:
            kept.append(line)
            seen.add(words)
    return "\n".join(kept)


_STEPS: dict[str, Callable[[str], str]] = {
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "control": lambda text: _CONTROL.sub("", _LINE_BREAK.sub("\n", text)),
    "spaces": _spaces,
    "join_lines": lambda text: _SINGLE_BREAK.sub(" ", _BETWEEN_WIDE.sub("", text)),
    "repeated_lines": _repeated_lines,
}
#: The names of the steps, as they are counted.
CLEANING_STEPS = tuple(_STEPS)


@dataclass(frozen=True)
class EncoderSettings:
    """Everything an encoder depends on."""

    tokenizer: str  # the text of `tokenizer.json`
    dtype: str  # of the tokens, "uint16" or "uint32"
    cleaning: Cleaning  # how texts are cleaned first
    signatures: bool = False  # whether near-duplicates are looked for, which needs signatures
    origin: Path | None = None  # the file of the tokenizer, for errors


class EncodedDocument(NamedTuple):
    """A document after cleaning and tokenizing."""

    dropped: str | None  # why it is left out: "empty", "short" or "no tokens"; else None
    changed: list[str]  # the cleaning steps that changed it
    digest: bytes = b""  # the same for equal texts
    signature: Signature | None = None  # for near-duplicates, where they are looked for
    tokens: Array = np.zeros(0, dtype=np.uint16)  # `[T]`, without special tokens
    # `[S]` int64: the token at which each sentence begins; the first is 0, and each sentence has a
    # token.
    sentences: Array = np.zeros(0, dtype=np.int64)
    characters: int = 0  # of the cleaned text
    bytes: int = 0  # of the cleaned text in UTF-8
    lost: int = 0  # characters that the tokenizer leaves out, as it does not know them


class Encoder:
    """A tokenizer with everything that is done before and after it."""

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        self.engine = literal_engine(RustTokenizer.from_str(settings.tokenizer))
        # A text with "[SEP]" in it is about that token: nothing is separated there.
        self.engine.encode_special_tokens = True
        self.dropped = DroppedCharacters(self.engine)

    def __call__(self, texts: Sequence[str]) -> list[EncodedDocument]:
        """Clean and tokenize documents, each on its own."""
        # Tokenize only what is long enough, in one call: the engine has threads of its own.
        cleaned = [clean(text, self.settings.cleaning) for text in texts]
        dropped = [self._too_short(text) for text, _ in cleaned]
        kept = [text for (text, _), reason in zip(cleaned, dropped, strict=True) if reason is None]
        with explained(self.engine, kept, self.settings.origin):
            encodings = iter(self.engine.encode_batch(kept, add_special_tokens=False))
        return [
            self._encoded(text, changed, next(encodings))
            if reason is None
            # How a dropped document was cleaned is of no interest.
            else EncodedDocument(reason, [])
            for (text, changed), reason in zip(cleaned, dropped, strict=True)
        ]

    def _too_short(self, text: str) -> str | None:
        if not text.strip():
            return "empty"
        return "short" if len(text) < self.settings.cleaning.min_chars else None

    def _encoded(self, text: str, changed: list[str], encoding: Encoding) -> EncodedDocument:
        tokens = np.array(encoding.ids, dtype=self.settings.dtype)
        if len(tokens) == 0:
            return EncodedDocument("no tokens", [])
        starts = [start for start, _ in sentence_spans(text)]
        return EncodedDocument(
            None,
            changed,
            digest(text),
            signature(text) if self.settings.signatures else None,
            tokens,
            first_tokens(np.array(encoding.offsets, dtype=np.int64), starts),
            len(text),
            len(text.encode("utf-8")),
            self.dropped(text).total(),
        )


def first_tokens(offsets: Array, starts: Sequence[int]) -> Array:
    """`[S]` int64, ascending from 0: the tokens at which sentences begin.

    A token belongs to the sentence of its last character, because in a byte-level vocabulary a
    token begins with the space before its word. Tokens of space after a sentence belong to it. A
    sentence without a token of its own is left out.

    Args:
        offsets: `[T, 2]` the characters (start, end) of each token, T > 0.
        starts: the characters where sentences begin, ascending.
    """
    # A token without characters, as some normalizers make, stays with the token before it.
    last = np.maximum.accumulate(np.where(offsets[:, 1] > offsets[:, 0], offsets[:, 1] - 1, 0))
    sentence = np.searchsorted(np.array(starts, dtype=np.int64), last, side="right")
    # Space before the first sentence belongs to the first sentence.
    begins = np.flatnonzero(np.diff(np.maximum(sentence, 1)) > 0) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), begins.astype(np.int64)])
