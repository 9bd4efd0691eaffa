"""Which tokens are one word: what whole-word masking and spans go by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from pretune.errors import RunError

Array = NDArray[Any]
#: A text to its words, end to end: together they are the text.
Segmenter = Callable[[str], Sequence[str]]


def segmenter(kind: Literal["tokenizer", "jieba"]) -> Segmenter | None:
    """What finds words where the tokenizer alone does not, as in Chinese; None: nothing does.

    Raises:
        RunError: the extra `zh` is not installed.
    """
    if kind == "tokenizer":
        return None
    try:
        import rjieba
    except ImportError as error:
        raise RunError(
            f"task.words=jieba needs rjieba ({error})", "Install it with: pip install 'pretune[zh]'"
        ) from None
    cut: Segmenter = rjieba.cut
    return cut


def word_numbers(encoding: Encoding, text: str, segment: Segmenter | None = None) -> Array:
    """`[tokens]` int32: which word each token of a text belongs to, counted from 0.

    The tokenizer's own words: for WordPiece, a piece with `##` continues the word before it. A
    segmenter joins those that lie in one of its words, such as the characters of a Chinese one
    (Cui et al. 2021, "Pre-Training with Whole Word Masking for Chinese BERT").

    Args:
        encoding: of the text, without special tokens.
        text: the text.
        segment: finds more words.
    """
    own = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    if len(own) == 0:
        return np.empty(0, dtype=np.int32)
    new = own[1:] != own[:-1]
    if segment is not None:
        lengths = [len(word) for word in segment(text)]
        ends = np.cumsum(lengths)
        places = np.searchsorted(ends, [start for start, _ in encoding.offsets], side="right")
        new &= places[1:] != places[:-1]
    return np.concatenate([[0], np.cumsum(new)]).astype(np.int32)
