"""What text generation asks of a model, whatever it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class SequenceState(Protocol):
    """What a model keeps of the B sequences it is in the middle of, and can be run on from.

    A Transformer's grows with them and is changed in place (`KVCache`); of a state of fixed size
    (`State` in models/classic.py) each run gives the next one.
    """

    @property
    def count(self) -> int:
        """B."""

    def select(self, rows: Sequence[int], /) -> object:
        """Some of the sequences."""


class DecoderState(Protocol):
    """What a model keeps of the sequences it reads; changed in place.

    A Transformer's keys and values, an RNN's hidden state, an n-gram model's last n - 1 tokens.
    """

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; one that is named twice is forked."""

    def extend(self, other: Any) -> None:
        """Take in the sequences of another state of the same model, after one's own."""


class LanguageModel(Protocol):
    """A model that reads tokens from left to right and says what may come next.

    Several sequences are read side by side, each of its own length. What it says of one does not
    depend on the others, but for the rounding of sums that a machine does in another order.
    """

    @property
    def context_length(self) -> int | None:
        """The most tokens a state can hold of a sequence; None where there is no such limit."""

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""

    @property
    def opening(self) -> Sequence[int] | None:
        """With what each text begins, for a model that writes another text than it reads.

        None: what is written goes on from what was read.
        """

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        """Read the beginnings of B sequences.

        Args:
            prompts: token ids; none is empty, none is longer than `context_length`.

        Returns:
            logits `[B, V]` of the token after each, and the `DecoderState`.
        """

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Read one more token of each sequence.

        Args:
            tokens: `[B]` int64.
            state: from `start`; changed in place. No sequence in it has reached `context_length`.

        Returns:
            logits `[B, V]` of the token after it.
        """

    def follow(self, more: Sequence[Sequence[int]], state: Any, *, every: bool = False) -> Tensor:
        """Read several more tokens of each sequence, in one pass.

        Args:
            more: token ids of each; none is empty, and none goes beyond `context_length`.
            state: from `start`; changed in place.
            every: give what may follow each of the tokens, not only the last.

        Returns:
            logits `[B, V]` of the token after each sequence; with `every`, `[T, V]` of the token
            after each of the T tokens, sequence by sequence.
        """
