"""What the neural language models before the Transformer share.

They carry a state of fixed size from token to token, where a Transformer attends to all earlier
tokens. A text can be read in pieces: the state after one piece is the start of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Backbone
from pretune.models.config import MAX_SIZES, ModelConfig
from pretune.models.family import Family, HeadLayout, rules
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.vocabulary import Scores
from pretune.models.language_model import RecurrentState, SequenceState
from pretune.models.layers import Linear, ModelOutput, sample_rows

#: Fills a window of tokens to the left of the beginning of a text.
NO_TOKEN = -1


@dataclass
class MutableState:
    """A recurrent state in a box: the `DecoderState` that text generation changes in place."""

    state: RecurrentState

    def select(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; a sequence that is named twice is forked."""
        self.state = self.state.select(rows)

    def extend(self, other: MutableState) -> None:
        """Append the sequences of another state of the same model."""
        self.state = self.state.joined(other.state)


@dataclass(frozen=True)
class WindowState:
    """The last tokens of each sequence."""

    window: Tensor  # `[B, n - 1]` int64 token ids, oldest first; `NO_TOKEN` before the beginning

    @property
    def count(self) -> int:
        """B."""
        return len(self.window)

    def select(self, index: Tensor | Sequence[int]) -> WindowState:
        """Pick the states of some sequences."""
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.window.device)
        return WindowState(self.window.index_select(0, rows))

    def joined(self, other: WindowState) -> WindowState:
        """These sequences, then the sequences of the other state."""
        return WindowState(torch.cat([self.window, other.window]))

    def detach(self) -> WindowState:
        """The same state: token ids have no gradient."""
        return self


@dataclass(frozen=True)
class ClassicOutput(ModelOutput):
    """A `ModelOutput` with the state after it."""

    #: After the last token of each sequence, in the order of the batch.
    state: RecurrentState | None = None


@dataclass(frozen=True)
class ClassicConfig(ModelConfig):
    """The sizes that all of these models have: no attention, no table of positions."""

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
        """Check the sizes and the dropout; a `CheckpointError` names the entry that is wrong."""
        self.check_sizes(self.dropout_names)
        self.check("embedding_size", int, 1, MAX_SIZES["hidden_size"])

    def check_flag(self, name: str) -> None:
        """Check that an entry is true or false; else a `CheckpointError` names it."""
        if not isinstance(getattr(self, name), bool):
            raise CheckpointError(f"config: {name} must be true or false")

    @override
    def size(self, name: str) -> int:
        # No attention heads, and texts of any length.
        if name == "num_attention_heads":
            return 0
        return MAX_SIZES[name] if name == "max_position_embeddings" else super().size(name)

    @override
    @classmethod
    def dropout_entries(
        cls, dropout: float | None, attention_dropout: float | None
    ) -> dict[str, float]:
        if attention_dropout is not None:
            raise CheckpointError(
                f"attention_dropout: a model of the type {cls.model_type} has no attention",
                "Leave it out, or set dropout.",
            )
        return super().dropout_entries(dropout, None)


class ClassicModel(Backbone):
    """A backbone that reads from left to right and keeps a state."""

    causal = True
    has_attention = False
    config: ClassicConfig

    @property
    def features(self) -> int:
        """The width of `last_hidden_state`."""
        return self.config.hidden_size

    @property
    def tied(self) -> bool:
        """Whether the output layer is the table of embeddings."""
        return False

    def initial(self, count: int) -> RecurrentState:
        """The state of `count` sequences of which nothing has been read."""
        raise NotImplementedError

    @override
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
            select: return `last_hidden_state` of these rows only.
            output_hidden_states: also return the 1 + L hidden states (excludes `select`).
            output_attentions: not supported, as there is no attention.
            state: the `state` of an earlier output, whose sequence i continues as sequence i of
                this batch. Gradients flow through it unless it is detached (truncated BPTT:
                Williams & Peng 1990, section 4).

        Raises:
            CheckpointError: attention maps were asked for.
            ValueError: the state is of another number of sequences, or hidden states were asked
                for together with `select`.
        """
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
        # Not kept in a variable here: `run` drops the state as soon as it has read it.
        return self.run(
            batch,
            self.initial(batch.num_sequences) if state is None else state,
            select,
            output_hidden_states,
        )

    def run(
        self, batch: PackedBatch, before: Any, select: Selection | None, output_hidden_states: bool
    ) -> ClassicOutput:
        """Compute `forward`, with checked arguments, from the state `before`."""
        raise NotImplementedError


class ClassicLM(LanguageModelHead):
    """The next token, by a linear map with a bias; a `LanguageModel` and a `StatefulLM`.

    The matrix is the head's own, or the table of embeddings.
    """

    context_length = None  # a text may continue without end
    opening = None  # generated text continues the prompt
    backbone: ClassicModel

    def __init__(self, backbone: ClassicModel) -> None:
        super().__init__()
        count = backbone.config.vocab_size
        self.backbone = backbone
        self.ties_output = backbone.tied
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
        state: RecurrentState | None = None,
        **scoring: Any,
    ) -> Tensor | Scores:
        """Predict the next tokens, as `LanguageModelHead.forward`.

        Scores have the state after the batch. `state` is the one to start from; default: of texts
        of which nothing has been read.
        """
        output = self.backbone(batch, select=select, state=state)
        scored = self.decode(output.last_hidden_state, labels, **scoring)
        return replace(scored, state=output.state) if isinstance(scored, Scores) else scored

    @override
    def output_table(self) -> Tensor:
        return super().output_table() if self.output is None else self.output.weight

    @override
    def output_bias(self) -> Tensor:
        return self.bias

    @override
    def grow_output(self, added: int) -> None:
        if self.output is not None:
            rows = self.output.weight
            with torch.no_grad():
                table = torch.cat([rows, sample_rows(rows, added)])
            self.output.weight = nn.Parameter(table, requires_grad=rows.requires_grad)
            self.output.out_features = len(table)
        bias = self.bias.detach()
        self.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(added)]))

    def carry(
        self, batch: PackedBatch, state: RecurrentState | None, *, select: Selection | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Logits of a batch that continues from a state, and the state after it."""
        output = self.backbone(batch, select=select, state=state)
        return self._logits(output.last_hidden_state), output.state

    def initial(self, count: int) -> RecurrentState:
        """The state of `count` sequences of which nothing has been read."""
        return self.backbone.initial(count)

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""
        return self.backbone.config.vocab_size

    def start(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, MutableState]:
        """Read the beginnings of sequences; see `LanguageModel.start`."""
        batch = PackedBatch.of(prompts).to(self.bias.device)
        logits, state = self.carry(batch, None, select=batch.last)
        return logits, MutableState(state)

    def step(self, tokens: Tensor, state: MutableState) -> Tensor:
        """Read one token of each sequence; see `LanguageModel.step`."""
        layout = Layout.of([1] * len(tokens), tokens.device)
        batch = PackedBatch(tokens, layout, torch.zeros_like(tokens))
        logits, state.state = self.carry(batch, state.state)
        return logits

    def follow(
        self, more: Sequence[Sequence[int]], state: MutableState, *, every: bool = False
    ) -> Tensor:
        """Read several tokens of each sequence; see `LanguageModel.follow`."""
        batch = PackedBatch.of(more).to(self.bias.device)
        select = None if every else batch.last
        logits, state.state = self.carry(batch, state.state, select=select)
        return logits


def classic_family(
    name: str,
    model_type: str,
    backbone: type[ClassicModel],
    names: Sequence[str],
    presets: Mapping[str, Mapping[str, Any]],
) -> Family:
    """Make the family of a classic language model, which no other library has a layout for.

    Args:
        name: first part of the class names in `config.json`.
        model_type: of `config.json`.
        backbone: our class.
        names: our names of the parameters of the backbone without its token embeddings.
        presets: as for `Family`.
    """
    own = ("embeddings.tokens.weight", *names)
    head = rules(("output.weight", "output.weight"), ("bias", "bias"))
    return Family(
        model_type=model_type,
        prefix="backbone.",
        backbone=backbone,
        rules=rules(*((ours, ours) for ours in own)),
        heads={
            "backbone": HeadLayout(f"{name}Model"),
            "causal_lm": HeadLayout(
                f"{name}ForCausalLM", lambda backbone, labels: ClassicLM(backbone), head
            ),
        },
        published=False,
        presets=presets,
    )
