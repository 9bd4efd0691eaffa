"""What is done to the text of a document before it is tokenized."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from pretune.corpus.dedupe import Signature, digest, signature
from pretune.data.arrays import Array
from pretune.text.sentence_ends import sentence_spans

_LINE_BREAK = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# The C0 and C1 controls but tab and line feed, and the byte order mark. Format characters stay:
# they hold emoji together (U+200D) and separate letters in Persian (U+200C).
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_SPACES = re.compile(r"[^\S\n]+")
_WIDE = (
    "[\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60"
    "\U00020000-\U0003ffff]"
)
# Chinese and Western texts write these alike: they are as wide as what is on their other side.
_EITHER = "[“”‘’…—·]"
_BETWEEN_WIDE = re.compile(
    rf"(?<={_WIDE})\n(?={_WIDE}|{_EITHER})|(?<={_EITHER})\n(?={_WIDE})"
    rf"|(?<={_WIDE}{_EITHER})\n(?={_EITHER}{_WIDE})"
)
_SINGLE_BREAK = re.compile(r"(?<=[^\n])\n(?=[^\n])")


@dataclass(frozen=True)
class Cleaning:
    """Which steps are taken, in this order.

    Attributes:
        nfc: Unicode's normal form C, so that é is one character however it was typed.
        control: control characters are removed; other line breaks become line feeds.
        spaces: every run of spaces and tabs becomes one space; lines lose those at their ends.
        join_lines: lines wrapped at a column become one: a single line break becomes a space, or
            nothing between Chinese characters and their punctuation; blank lines stay.
        repeated_lines: a line that stood in the document before is dropped.
        min_chars: a document with fewer characters is dropped.
    """

    nfc: bool = True
    control: bool = True
    spaces: bool = True
    join_lines: bool = False
    repeated_lines: bool = False
    min_chars: int = 1


def clean(text: str, options: Cleaning) -> tuple[str, list[str]]:
    """Clean a document.

    Returns:
        The text, and the names of the steps that changed it.
    """
    changed = []
    for name, step in _STEPS.items():
        if getattr(options, name):
            after = step(text)
            if after != text:
                changed.append(name)
                text = after
    return text, changed


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _control(text: str) -> str:
    return _CONTROL.sub("", _LINE_BREAK.sub("\n", text))


def _spaces(text: str) -> str:
    lines = _SPACES.sub(" ", text).split("\n")
    return "\n".join(line.strip(" ") for line in lines).strip("\n")


def _join_lines(text: str) -> str:
    return _SINGLE_BREAK.sub(" ", _BETWEEN_WIDE.sub("", text))


def _repeated_lines(text: str) -> str:
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        words = line.strip()
        if not words or words not in seen:
            kept.append(line)
            seen.add(words)
    return "\n".join(kept)


_STEPS = {
    "nfc": _nfc,
    "control": _control,
    "spaces": _spaces,
    "join_lines": _join_lines,
    "repeated_lines": _repeated_lines,
}


@dataclass(frozen=True)
class EncoderSettings:
    """All that an encoder depends on.

    Attributes:
        tokenizer: the text of `tokenizer.json`.
        dtype: of the tokens, "uint16" or "uint32".
        cleaning: what is done to the text first.
        signatures: whether documents are to be compared for near-duplicates.
    """

    tokenizer: str
    dtype: str
    cleaning: Cleaning
    signatures: bool = False


class EncodedDocument(NamedTuple):
    """What became of a document.

    Attributes:
        dropped: why it is left out: "empty", "short" or "no tokens"; else None.
        changed: the steps of cleaning that changed it.
        digest: equal for equal texts.
        signature: for near-duplicates, if they are looked for.
        tokens: `[T]`, no special ones.
        sentences: `[S]` int64: in which tokens sentences begin; the first is 0, each has a token.
        characters: of the cleaned text.
        bytes: of the cleaned text in UTF-8.
    """

    dropped: str | None
    changed: list[str]
    digest: bytes = b""
    signature: Signature | None = None
    tokens: Array = np.zeros(0, dtype=np.uint16)
    sentences: Array = np.zeros(0, dtype=np.int64)
    characters: int = 0
    bytes: int = 0


class Encoder:
    """A tokenizer with all that is done before and after it."""

    def __init__(self, plan: EncoderSettings) -> None:
        self.plan = plan
        self.engine = RustTokenizer.from_str(plan.tokenizer)
        # A text that has "[SEP]" in it is about that token: it does not separate anything.
        self.engine.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> list[EncodedDocument]:
        """Clean and tokenize documents, each on its own.

        Raises:
            PretuneError: datasketch is needed and not installed.
        """
        cleaned = [clean(text, self.plan.cleaning) for text in texts]
        dropped = [self._too_short(text) for text, _ in cleaned]
        kept = [text for (text, _), reason in zip(cleaned, dropped, strict=True) if reason is None]
        encodings = iter(self.engine.encode_batch(kept, add_special_tokens=False))
        return [
            self._encoded(text, changed, next(encodings))
            if reason is None
            # Of what is dropped nobody asks how it was cleaned.
            else EncodedDocument(reason, [])
            for (text, changed), reason in zip(cleaned, dropped, strict=True)
        ]

    def _too_short(self, text: str) -> str | None:
        if not text.strip():
            return "empty"
        return "short" if len(text) < self.plan.cleaning.min_chars else None

    def _encoded(self, text: str, changed: list[str], encoding: Encoding) -> EncodedDocument:
        tokens = np.array(encoding.ids, dtype=self.plan.dtype)
        if len(tokens) == 0:
            return EncodedDocument("no tokens", [])
        starts = [start for start, _ in sentence_spans(text)]
        return EncodedDocument(
            None,
            changed,
            digest(text),
            signature(text) if self.plan.signatures else None,
            tokens,
            first_tokens(np.array(encoding.offsets, dtype=np.int64), starts),
            len(text),
            len(text.encode("utf-8")),
        )


def first_tokens(offsets: Array, starts: Sequence[int]) -> Array:
    """In which tokens sentences begin.

    A token belongs to the sentence its last character is in, for in a byte-level vocabulary a token
    begins with the space before its word. Tokens of space after a sentence belong to it.

    Args:
        offsets: `[T, 2]` the characters (start, end) of each token, T > 0.
        starts: the characters where sentences begin, ascending.

    Returns:
        `[S]` int64, ascending from 0. A sentence without a token of its own has none here.
    """
    # A token of no character (start = end, some normalizers make such) stays with the last one.
    last = np.maximum.accumulate(np.where(offsets[:, 1] > offsets[:, 0], offsets[:, 1] - 1, 0))
    sentence = np.searchsorted(np.array(starts, dtype=np.int64), last, side="right")
    # Space before the first sentence is the first one's.
    begins = np.flatnonzero(np.diff(np.maximum(sentence, 1)) > 0) + 1
    return np.concatenate([np.zeros(1, dtype=np.int64), begins.astype(np.int64)])
