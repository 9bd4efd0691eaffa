"""What the neural language models before the Transformer share.

They carry a state of fixed size from token to token, where a Transformer looks back at all of them:
so a text can be read in pieces, and the state after one piece begins the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models import ops
from pretune.models.backbone import Backbone
from pretune.models.config import LARGEST, ModelConfig
from pretune.models.heads.vocabulary import Scores, over_vocabulary
from pretune.models.language_model import SequenceState
from pretune.models.layers import Linear, ModelOutput


class State(SequenceState, Protocol):
    """What a model remembers of the B sequences it is in the middle of; never changed in place."""

    def select(self, index: Tensor | Sequence[int]) -> Self:
        """The states of the sequences `index` `[B']`: for beams, and to drop what has ended."""

    def detach(self) -> Self:
        """The same values, through which no gradient flows back."""

    def joined(self, other: Self) -> Self:
        """The states of these sequences, then those of the other's."""


@dataclass
class Reading:
    """A state that is changed in place, as text generation keeps it.

    Attributes:
        state: where each sequence is now.
    """

    state: State

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; one that is named twice is forked."""
        self.state = self.state.select(rows)

    def extend(self, other: Reading) -> None:
        """Take in the sequences of another one of the same model, after one's own."""
        self.state = self.state.joined(other.state)


@dataclass(frozen=True)
class ClassicOutput(ModelOutput):
    """`ModelOutput`, and where each sequence is left.

    Attributes:
        state: after the last token of each sequence, in the order of the batch.
    """

    state: State | None = None


@dataclass(frozen=True)
class ClassicConfig(ModelConfig):
    """The sizes that all have: no attention, no table of positions."""

    dropout_names = ("dropout",)
    attention_dropout_name = ""
    activation_name = ""
    endless = True

    #: Standard deviation of fresh embeddings and output weights.
    initializer_range: float = 0.1
    vocab_size: int = 10_000
    embedding_size: int = 200
    hidden_size: int = 200
    dropout: float = 0.0

    def check_classic(self) -> None:
        """Check the sizes and the dropout.

        Raises:
            CheckpointError: one makes no sense; names it.
        """
        self.check_sizes(self.dropout_names)
        self.check("embedding_size", int, 1, LARGEST["hidden_size"])

    def check_flag(self, name: str) -> None:
        """Whether an entry is true or false.

        Raises:
            CheckpointError: it is not; names it.
        """
        if not isinstance(getattr(self, name), bool):
            raise CheckpointError(f"config: {name} must be true or false")

    def size(self, name: str) -> int:
        """As `ModelConfig.size`; there are no heads of attention, and positions are not counted."""
        if name == "num_attention_heads":
            return 0
        return LARGEST[name] if name == "max_position_embeddings" else super().size(name)

    @classmethod
    def dropout_entries(
        cls, dropout: float | None, attention_dropout: float | None
    ) -> dict[str, float]:
        """As `ModelConfig.dropout_entries`.

        Raises:
            CheckpointError: a dropout of attention, which there is none of.
        """
        if attention_dropout is not None:
            raise CheckpointError(
                f"attention_dropout: a model of the type {cls.model_type} has no attention",
                "Leave it out, or set dropout.",
            )
        return super().dropout_entries(dropout, None)


class ClassicModel(Backbone):
    """A backbone that reads from left to right and keeps a state."""

    causal = True
    config: ClassicConfig

    @property
    def features(self) -> int:
        """The width of `last_hidden_state`."""
        return self.config.hidden_size

    @property
    def tied(self) -> bool:
        """Whether the table of embeddings is the output layer too."""
        return False

    def initial(self, count: int) -> State:
        """The state of `count` sequences of which nothing was read yet."""
        raise NotImplementedError

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        state: SequenceState | None = None,
    ) -> ClassicOutput:
        """Run the model.

        Args:
            batch: token ids with their layout.
            select: give `last_hidden_state` of these rows only.
            output_hidden_states: also give the 1 + L hidden states (excludes `select`).
            output_attentions: there are none: an error.
            state: what `state` of an earlier output was, where sequence i of this batch goes on
                with sequence i of that one. Gradients flow through it, unless it was detached
                (truncated back-propagation through time: Williams & Peng 1990, section 4).

        Raises:
            CheckpointError: attention maps were asked for.
            ValueError: a state of other sequences; hidden states of some rows only.
        """
        raise NotImplementedError

    def begin(
        self,
        batch: PackedBatch,
        select: Selection | None,
        output_hidden_states: bool,
        output_attentions: bool,
        state: SequenceState | None,
    ) -> SequenceState:
        """Check what `forward` was asked for, and give the state to begin with."""
        if output_attentions:
            raise CheckpointError(
                f"a model of the type {self.config.model_type} has no attention to look at",
                "Use a BERT, a DistilBERT or a GPT-2.",
            )
        if select is not None and output_hidden_states:
            raise ValueError("hidden states are of all rows: leave out `select`")
        if state is not None and state.count != batch.num_sequences:
            raise ValueError(
                f"a state of {state.count} sequences for a batch of {batch.num_sequences}"
            )
        return self.initial(batch.num_sequences) if state is None else state


class ClassicLM(nn.Module):
    """The next token: a linear map with a bias, its matrix its own or the table of embeddings.

    With `start` and `step` it generates, sequences side by side, each of its own length.

    Class attributes:
        context_length: None, as a text may go on without end.
        opening: None: what is written goes on from what was read.
    """

    context_length = None
    opening = None

    def __init__(self, backbone: ClassicModel) -> None:
        super().__init__()
        count = backbone.config.vocab_size
        self.backbone = backbone
        self.output = None if backbone.tied else Linear(backbone.features, count, bias=False)
        self.bias = nn.Parameter(torch.zeros(count))
        if self.output is not None:
            backbone.init_weights(self.output)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        labels: Tensor | None = None,
        state: State | None = None,
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor | Scores:
        """Logits `[T, vocab]`, or `[R, vocab]` for the selected tokens alone.

        Row t says which token follows token t. With `labels`, `[T]`, the scores of those that do
        (`smoothing`, `z_loss`: as `score_tokens`'), and with them the state after the batch.
        `state` is the one to go on from (None: from nothing).
        """
        output = self.backbone(batch, select=select, state=state)
        hidden = output.last_hidden_state
        found = over_vocabulary(hidden, self._table, self.bias, labels, smoothing, z_loss)
        return replace(found, state=output.state) if isinstance(found, Scores) else found

    @property
    def _table(self) -> Tensor:
        found = self.backbone.embeddings.tokens if self.output is None else self.output
        return found.weight

    def decode(self, hidden: Tensor) -> Tensor:
        """`[R, features]` to logits `[R, vocab]`."""
        return ops.linear(hidden, self._table, self.bias)

    def carry(
        self, batch: PackedBatch, state: State | None, *, select: Selection | None = None
    ) -> tuple[Tensor, State]:
        """As `forward`, going on from a state (None: from nothing) and giving the one after."""
        output = self.backbone(batch, select=select, state=state)
        return self.decode(output.last_hidden_state), output.state

    def initial(self, count: int) -> State:
        """The state of `count` sequences of which nothing was read yet."""
        return self.backbone.initial(count)

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""
        return self.backbone.config.vocab_size

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Reading]:
        """Read the beginnings of B sequences, none of them empty.

        Returns:
            logits `[B, vocab]` of the token after each, and what to go on from.
        """
        batch = PackedBatch.of(prompts).to(self.bias.device)
        logits, state = self.carry(batch, None, select=batch.last)
        return logits, Reading(state)

    def step(self, tokens: Tensor, reading: Reading) -> Tensor:
        """Read one more token of each sequence, `[B]`: logits `[B, vocab]` of the one after it.

        `reading` is changed in place.
        """
        layout = Layout.of([1] * len(tokens), tokens.device)
        batch = PackedBatch(tokens, layout, torch.zeros_like(tokens))
        logits, reading.state = self.carry(batch, reading.state)
        return logits

    def follow(
        self, more: Sequence[Sequence[int]], reading: Reading, *, every: bool = False
    ) -> Tensor:
        """As `LanguageModel.follow`."""
        batch = PackedBatch.of(more).to(self.bias.device)
        select = None if every else batch.last
        logits, reading.state = self.carry(batch, reading.state, select=select)
        return logits
