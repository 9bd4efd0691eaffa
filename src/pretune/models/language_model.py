"""What text generation and training over long texts ask of a model, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor


class SequenceState(Protocol):
    """What a model keeps of B sequences that it has read a part of.

    A Transformer's state grows with the sequences and is changed in place (`KVCache`). A state of
    fixed size (`RecurrentState`) is not changed: each pass returns the next one.
    """

    @property
    def count(self) -> int:
        """B."""

    def select(self, rows: Sequence[int], /) -> object:
        """Pick some of the sequences."""


class RecurrentState(SequenceState, Protocol):
    """A state of fixed size, never changed in place."""

    def select(self, index: Tensor | Sequence[int]) -> Self:
        """Pick the sequences `index` `[B']`: for beams, and to drop finished sequences."""

    def detach(self) -> Self:
        """The same values, cut from the graph."""

    def joined(self, other: Self) -> Self:
        """These sequences, then those of the other state."""


@runtime_checkable
class StatefulLM(Protocol):
    """A language model that carries a state from one piece of a text to the next.

    Its forward pass takes `state`, and with labels returns `Scores` whose `state` is the next one.
    """

    def initial(self, count: int) -> RecurrentState:
        """The state of `count` sequences of which nothing has been read."""

    def carry(self, batch: Any, state: Any) -> tuple[Tensor, Any]:
        """Logits of a batch that continues from a state, and the state after it."""


class DecoderState(Protocol):
    """What a model keeps of the sequences it generates; changed in place.

    A Transformer's keys and values, an RNN's hidden state, an n-gram model's last n - 1 tokens.
    """

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; a sequence that is named twice is forked."""

    def extend(self, other: Any) -> None:
        """Append the sequences of another state of the same model."""


class LanguageModel(Protocol):
    """A model that reads tokens from left to right and predicts the next one.

    Several sequences are read side by side, each of its own length. The predictions for a sequence
    do not depend on the others, except for rounding where sums are computed in another order.
    """

    @property
    def context_length(self) -> int | None:
        """The largest number of tokens of a sequence that a state can hold; None: no limit."""

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""

    @property
    def opening(self) -> Sequence[int] | None:
        """The tokens that every written text begins with, if it is another text than the prompt.

        None: generated text continues the prompt.
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
        """Read several more tokens of each sequence in one pass.

        Args:
            more: token ids of each sequence; none is empty, none exceeds `context_length`.
            state: from `start`; changed in place.
            every: return logits after every token, not only after the last.

        Returns:
            logits `[B, V]` of the token after each sequence; with `every`, `[T, V]` of the token
            after each of the T tokens, sequence by sequence.
        """
