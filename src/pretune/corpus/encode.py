"""One document to its tokens: what every engine computes, in whatever process or machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from pretune.corpus.clean import Cleaning, clean
from pretune.corpus.dedupe import Signature, digest, signature
from pretune.data.arrays import Array
from pretune.text.sentence_ends import sentence_spans


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
