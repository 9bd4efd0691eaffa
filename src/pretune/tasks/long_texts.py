"""Long texts: what a model that reads a text as a whole does with one of more tokens than it reads.

`cut` keeps the first tokens. `head_tail` keeps the first and the last ones. `windows` reads all of
the text in several sequences that overlap; the head answers each of them, and the answer is read
from the mean of the logits, in training as in prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from pretune.tokenizers.tokenizer import Encoded, Tokenizer, tokens_around

LongTexts = Literal["cut", "head_tail", "windows"]
#: Of the tokens that `head_tail` keeps the share that are the first of the text: 128 of 510 (Sun,
#: Qiu, Xu and Huang 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.1).
HEAD_SHARE = 128 / 510


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text as a model reads it.

    Attributes:
        ids: the tokens of its windows, end to end; of a text that is one sequence, its tokens.
        segments: the segment of each token.
        windows: how many tokens each window has; None: texts are one sequence each.
        truncated: whether tokens were left out.
    """

    ids: Sequence[int]
    segments: Sequence[int]
    windows: tuple[int, ...] | None
    truncated: bool


@dataclass(frozen=True, slots=True)
class SequenceRoom:
    """How many tokens of a text a sequence has room for, and what stands around them.

    Attributes:
        before: special tokens before the text, such as `[CLS]`.
        after: special tokens after it.
        tokens: of the text itself, at most.
        step: from one window to the next: `tokens` less those that both have.
    """

    before: int
    after: int
    tokens: int
    step: int

    def windows(self, length: int) -> list[tuple[slice, slice, slice]]:
        """Tell where the tokens of each window stand in a text: special, its own, special.

        Args:
            length: of the whole text in tokens, with special tokens.
        """
        end = length - self.after
        starts = window_starts(end - self.before, self.tokens, self.tokens - self.step)
        return [
            (
                slice(0, self.before),
                slice(self.before + start, min(self.before + start + self.tokens, end)),
                slice(end, length),
            )
            for start in starts
        ]


@dataclass(frozen=True, slots=True)
class LongReading:
    """How a model reads texts of any length.

    Attributes:
        long: what becomes of texts of over `max_length` tokens.
        max_length: the most tokens of a sequence, with special tokens.
        overlap: how many tokens two neighbouring windows share.
        max_windows: the most windows of a text.
    """

    long: LongTexts
    max_length: int
    overlap: int
    max_windows: int

    def room(self, tokenizer: Tokenizer) -> SequenceRoom:
        """Return what a sequence has room for.

        Raises:
            ValueError: `max_length` has no room for the special tokens.
        """
        before, after = map(len, tokens_around(tokenizer))
        tokens = self.max_length - before - after
        if tokens < 1:
            raise ValueError(
                f"max_length={self.max_length} has no room for {before + after} special tokens"
            )
        return SequenceRoom(before, after, tokens, tokens - min(self.overlap, tokens // 2))

    def read(
        self, tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None = None
    ) -> list[ReadText]:
        """Encode texts, or pairs of texts, to sequences of at most `max_length` tokens.

        Args:
            tokenizer: of the model.
            first: the texts.
            second: the second text of each pair, if any; not with windows.

        Raises:
            ValueError: `max_length` has no room for the special tokens.
        """
        if self.long != "windows":
            head = HEAD_SHARE if self.long == "head_tail" else 1.0
            encoded = tokenizer.encode(first, second, max_length=self.max_length, head=head)
            return [ReadText(own.ids, own.segments, None, own.truncated) for own in encoded]
        room = self.room(tokenizer)
        return [self._in_windows(own, room) for own in tokenizer.encode(first)]

    def _in_windows(self, whole: Encoded, room: SequenceRoom) -> ReadText:
        """Lay windows over a text; each has the special tokens of the text around it.

        Args:
            whole: the text in one sequence of any length.
            room: of a window.
        """
        windows = room.windows(len(whole.ids))
        kept = windows[: self.max_windows]
        return ReadText(
            [token for parts in kept for part in parts for token in whole.ids[part]],
            [kind for parts in kept for part in parts for kind in whole.segments[part]],
            tuple(sum(part.stop - part.start for part in parts) for parts in kept),
            len(windows) > len(kept),
        )

    def places(self, tokenizer: Tokenizer, text: str) -> list[int] | None:
        """Return which token of the whole text each token of its windows is.

        Windows share tokens, and each has the special tokens of the text.

        Args:
            tokenizer: of the model.
            text: that was read.

        Returns:
            numbers from 0, as many as `ReadText.ids`; None where the text is one sequence.
        """
        if self.long != "windows":
            return None
        (whole,) = tokenizer.encode([text])
        windows = self.room(tokenizer).windows(len(whole.ids))[: self.max_windows]
        if len(windows) == 1:
            return None
        parts = chain.from_iterable(windows)
        return [place for part in parts for place in range(part.start, part.stop)]

    def longest(self, tokenizer: Tokenizer) -> int:
        """Return the most tokens of a text, with special tokens, of which nothing is left out."""
        if self.long != "windows":
            return self.max_length
        return self.max_length + (self.max_windows - 1) * self.room(tokenizer).step


def window_starts(tokens: int, room: int, overlap: int) -> list[int]:
    """Return where windows of `room` tokens begin, each sharing `overlap` tokens with the next.

    The last window ends with the text, so that it is as long as the others, and shares more.
    """
    last = max(tokens - room, 0)
    return [*range(0, last, room - overlap), last]


def pooled_logits(outputs: Tensor, windows: Sequence[int]) -> Tensor:
    """Average the logits `[S, C]` of windows over each text: `[B, C]` in float32.

    Of a head that ends in a linear map it is the map of the mean of what it reads, as the
    hierarchical mean pooling of Sun et al. 2019 (section 5.3.1).

    Args:
        outputs: of all windows, text by text.
        windows: how many each of the B texts has.
    """
    return torch.stack([own.mean(0) for own in torch.split(outputs.float(), list(windows))])
