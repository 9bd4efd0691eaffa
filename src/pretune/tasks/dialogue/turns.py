"""Dialogues as tokens: turn after turn, each with its end, in windows of a model's length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from pretune.errors import CheckpointError
from pretune.tokenizers.tokenizer import Tokenizer

#: Of a text longer than this, only the end is tokenized where only its end can be read.
MOST_CHARS = 100_000


@dataclass(frozen=True)
class Fitted:
    """A history cut to what a model can read.

    Attributes:
        ids: its tokens.
        dropped: how many turns at the beginning were left out.
        cut: how many tokens at the beginning of the last turn were left out; -1: some, uncounted.
    """

    ids: list[int]
    dropped: int = 0
    cut: int = 0


@dataclass(frozen=True)
class TurnLayout:
    """How a dialogue is laid out: `[CLS] turn [SEP] turn [SEP]`.

    With a vocabulary that has no `[CLS]` there is no beginning, and turns end with the end of text:
    `turn <|endoftext|> turn <|endoftext|>` (Zhang et al. 2020, "DialoGPT", section 2.2).

    Attributes:
        tokenizer: of the model.
        begin: what stands before the first turn.
        end: what ends each turn.
    """

    tokenizer: Tokenizer
    begin: tuple[int, ...]
    end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """With the special tokens of a tokenizer.

        Raises:
            CheckpointError: it has none that could end a turn.
        """
        begin, end = tokenizer.special_id("cls_token"), tokenizer.special_id("sep_token")
        end = tokenizer.end_id if end is None else end
        if end is None:
            raise CheckpointError(
                "the tokenizer has no token for the end of a turn",
                "Take one with a sep_token or an eos_token, such as a BERT's (model.tokenizer).",
            )
        return cls(tokenizer, () if begin is None else (begin,), end)

    def turns(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each turn, its end the last."""
        encoded = self.tokenizer.encode_bare(texts, offsets=False, literal=True)
        return [[*encoding.ids, self.end] for encoding in encoded]

    def backwards(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each turn, the newest first; of those not asked for nothing is read."""
        for text in reversed(texts):
            yield from self.turns([text])

    def history(self, texts: Sequence[str], room: int) -> Fitted:
        """What a reply goes on from: as many of the last turns as there is room for.

        Of a last turn that is too long by itself, its end is read.

        Args:
            texts: the turns so far, the last one to be replied to.
            room: the most tokens.
        """
        newest_first = self.backwards([text[-MOST_CHARS:] for text in texts])
        most = max(1, room - len(self.begin))
        last = next(newest_first)
        kept = [last[-most:]]
        left = most - len(kept[0])
        cut = -1 if len(texts[-1]) > MOST_CHARS else len(last) - len(kept[0])
        # Without room for its end, no other is tokenized.
        while left and (turn := next(newest_first, None)) is not None and len(turn) <= left:
            kept.append(turn)
            left -= len(turn)
        ids = [token for turn in reversed(kept) for token in turn]
        first = len(texts) - len(kept)
        return Fitted([*self.begin, *ids], first, cut)


@dataclass(frozen=True)
class Window:
    """Some turns of a dialogue that are read together.

    Attributes:
        first: the first of them.
        fresh: the first one that an earlier window did not end with; those before are read again.
        stop: one more than the last.
    """

    first: int
    fresh: int
    stop: int


def turn_limit(lengths: Sequence[int], room: int) -> int:
    """The most tokens of a turn: half a window where the dialogue does not fit into one."""
    return room if sum(lengths) <= room else max(1, room // 2)


def windows(lengths: Sequence[int], room: int) -> Iterator[Window]:
    """A dialogue in windows of whole turns.

    Each turn is fresh in one window; a window that is not the first begins with turns before its
    fresh ones, one at least and half the window at most.

    Args:
        lengths: tokens of each turn; none above `turn_limit`.
        room: the most tokens of a window.
    """
    before = [0, *accumulate(lengths)]
    fresh = 0
    while fresh < len(lengths):
        first = max(0, fresh - 1)
        while first > 0 and before[fresh] - before[first - 1] <= room // 2:
            first -= 1
        # The next turn must fit, too.
        while before[fresh + 1] - before[first] > room and first < fresh - 1:
            first += 1
        stop = fresh + 1
        while stop < len(lengths) and before[stop + 1] - before[first] <= room:
            stop += 1
        yield Window(first, fresh, stop)
        fresh = stop
