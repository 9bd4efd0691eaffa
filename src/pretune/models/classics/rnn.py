"""Recurrent language models: Elman's RNN, the GRU and the LSTM.

- `rnn`: h = tanh(W x + U h' + b) (Elman 1990; as a language model Mikolov et al. 2010).
- `gru`: with gates for resetting and updating (Cho et al. 2014, equations 5 to 8, the reset gate
  behind the recurrent matrix, as cuDNN and PyTorch have it).
- `lstm`: with a cell behind gates (Hochreiter & Schmidhuber 1997; the forget gate is that of Gers
  et al. 2000).

The steps run on PyTorch's own kernels, over sequences sorted by length: step t is computed only for
sequences longer than t, so that there is no padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.errors import CheckpointError, did_you_mean
from pretune.models.backbone import Embeddings
from pretune.models.classics.common import (
    ClassicConfig,
    ClassicModel,
    ClassicOutput,
    classic_family,
)
from pretune.models.config import brief
from pretune.models.layers import Dropout, Embedding, Linear

#: Blocks in the matrices of each kind of cell, in PyTorch's order (LSTM: input, forget, cell,
#: output; GRU: reset, update, new).
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True)
class RnnConfig(ClassicConfig):
    """The sizes; the defaults are the small LSTM of Zaremba et al. 2014 (section 4.1).

    Attributes:
        cell: `rnn`, `gru` or `lstm`.
        num_hidden_layers: L, the number of stacked layers.
        dropout: on the embeddings and on each layer's output, but never from step to step
            (Zaremba et al. 2014, figure 2).
        tie_word_embeddings: use the table of embeddings as output layer (Press & Wolf 2017).
    """

    model_type: ClassVar[str] = "rnn"

    cell: str = "lstm"
    num_hidden_layers: int = 2
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        self.check_classic()
        self.check_flag("tie_word_embeddings")
        cell = brief(self.cell)
        if cell not in GATES:
            raise CheckpointError(f"config: unknown cell '{cell}'", did_you_mean(cell, GATES))
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise CheckpointError(
                f"config: tie_word_embeddings needs an embedding_size ({self.embedding_size}) "
                f"equal to hidden_size ({self.hidden_size})"
            )


@dataclass(frozen=True)
class RnnState:
    """The hidden state of each sequence."""

    hidden: Tensor  # `[L, B, hidden]`: h of each layer
    cell: Tensor | None = None  # `[L, B, hidden]`: c of each layer, for LSTMs

    @property
    def count(self) -> int:
        """B."""
        return self.hidden.shape[1]

    def select(self, index: Tensor | Sequence[int]) -> RnnState:
        """Pick the states of some sequences."""
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.hidden.device)
        cell = None if self.cell is None else self.cell.index_select(1, rows)
        return RnnState(self.hidden.index_select(1, rows), cell)

    def joined(self, other: RnnState) -> RnnState:
        """These sequences, then those of the other state."""
        cells = [state.cell for state in (self, other) if state.cell is not None]
        hidden = torch.cat([self.hidden, other.hidden], dim=1)
        return RnnState(hidden, torch.cat(cells, dim=1) if cells else None)

    def detach(self) -> RnnState:
        """The same values, cut from the graph."""
        return RnnState(self.hidden.detach(), None if self.cell is None else self.cell.detach())


@dataclass(frozen=True)
class TimeMajor:
    """The rows of a packed batch step by step, the longest sequence first."""

    order: Tensor  # `[B]`: the sequences, sorted by length
    place: Tensor  # `[B]`: the place of each sequence in `order`
    rows: Tensor  # `[T]`: for each row of the sorted batch, its row in the packed batch
    back: Tensor  # `[T]`: for each row of the packed batch, its row in the sorted batch
    batch_sizes: Tensor  # `[longest]` int64 on the host: the number of sequences that have a step t

    @classmethod
    def of(cls, layout: Layout) -> TimeMajor:
        """The plan for a layout, which caches it."""
        known = layout.plans.get(cls)
        if isinstance(known, cls):
            return known
        # Sequences, longest first, and the number of them that are longer than t.
        lengths = np.asarray(layout.lengths, dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        place = np.argsort(order)
        sizes = np.searchsorted(-lengths[order], -np.arange(layout.max_seqlen))
        # A row's index in the sorted batch: the rows of earlier steps, then its sequence's place.
        steps = np.arange(layout.total) - np.repeat(np.asarray(layout.starts), lengths)
        back = (np.cumsum(sizes) - sizes)[steps] + np.repeat(place, lengths)
        device = layout.cu_seqlens.device

        def index(values: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(values).to(device, non_blocking=True)

        steps_of = torch.from_numpy(sizes.astype(np.int64))  # stays on the host
        plan = cls(index(order), index(place), index(np.argsort(back)), index(back), steps_of)
        layout.plans[cls] = plan
        return plan


class RnnEmbeddings(Embeddings):
    """The embeddings of the tokens, then dropout."""

    def __init__(self, config: RnnConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.embedding_size)
        self.dropout = Dropout(config.dropout)

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.dropout(self.tokens(batch.tokens))
        return embedded


class RecurrentLayer(nn.Module):
    """One layer of cells, then dropout."""

    def __init__(self, config: RnnConfig, input_size: int) -> None:
        super().__init__()
        self.cell = config.cell
        width = GATES[config.cell] * config.hidden_size
        self.input = Linear(input_size, width)
        self.recurrent = Linear(config.hidden_size, width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, batch_sizes: Tensor, hidden: Tensor, cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run all steps: `[T, input]`, sorted by step, to `[T, hidden]`.

        `hidden` and `cell`, `[B, hidden]`, are h and c before the first step; those after the last
        step are returned with the output.
        """
        # In PyTorch's order: the weights of input and state, then their biases.
        parts = [getattr(p, k) for k in ("weight", "bias") for p in (self.input, self.recurrent)]
        # has_biases, num_layers, dropout between layers, train, bidirectional
        options = (True, 1, 0.0, self.training, False)
        last = None
        if cell is not None:
            begin = (hidden[None], cell[None])
            y, first, last = torch.lstm(x, batch_sizes, begin, parts, *options)
        else:
            run = torch.gru if self.cell == "gru" else torch.rnn_tanh
            y, first = run(x, batch_sizes, hidden[None], parts, *options)
        return self.dropout(y), first[0], None if last is None else last[0]

    def init_weights(self) -> None:
        """Draw weights and biases uniformly within 1 / sqrt(hidden), as PyTorch's own layers do."""
        bound = 1 / math.sqrt(self.recurrent.in_features)
        for parameter in self.parameters():
            if not parameter.is_meta:
                nn.init.uniform_(parameter, -bound, bound)


class RnnModel(ClassicModel):
    """Embeddings and L recurrent layers over a packed batch."""

    config_class = RnnConfig
    config: RnnConfig

    def __init__(self, config: RnnConfig) -> None:
        super().__init__(config, RnnEmbeddings(config), [])
        inputs = [config.embedding_size, *[config.hidden_size] * (config.num_hidden_layers - 1)]
        self.layers = nn.ModuleList(RecurrentLayer(config, size) for size in inputs)
        self.init_weights()

    @property
    @override
    def tied(self) -> bool:
        return self.config.tie_word_embeddings

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        super().init_weights(module)
        for part in (module or self).modules():
            if isinstance(part, RecurrentLayer):
                part.init_weights()

    @override
    def initial(self, count: int) -> RnnState:
        like, config = self.embeddings.tokens.weight, self.config
        shape = (config.num_hidden_layers, count, config.hidden_size)
        hidden = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return RnnState(hidden, torch.zeros_like(hidden) if config.cell == "lstm" else None)

    @override
    def run(
        self,
        batch: PackedBatch,
        before: RnnState,
        select: Selection | None,
        output_hidden_states: bool,
    ) -> ClassicOutput:
        # Sort states and tokens by step.
        plan = TimeMajor.of(batch.layout)
        before = before.select(plan.order)
        embedded = self.embeddings(batch)
        x = embedded.index_select(0, plan.rows)
        # Run the layers, and keep the state that each ends in.
        hidden_states, hidden, cells = [embedded], [], []
        for i, layer in enumerate(self.layers):
            cell = None if before.cell is None else before.cell[i]
            given = (x, plan.batch_sizes, before.hidden[i], cell)
            if self.recompute and self.training and torch.is_grad_enabled():
                x, last, cell = checkpoint(layer, *given, use_reentrant=False)
            else:
                x, last, cell = layer(*given)
            hidden.append(last)
            cells += [] if cell is None else [cell]
            if output_hidden_states:
                hidden_states.append(x.index_select(0, plan.back))
        # Back to the order of the batch.
        rows = plan.back if select is None else plan.back[select.rows]
        return ClassicOutput(
            last_hidden_state=x.index_select(0, rows),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            state=_stacked(hidden, cells, before).select(plan.place),
        )


def _stacked(hidden: Sequence[Tensor], cells: Sequence[Tensor], like: RnnState) -> RnnState:
    """Stack the states of all layers, in the type of the state before: autocast may change it."""
    kind = like.hidden.dtype
    cell = torch.stack(tuple(cells)).to(kind) if cells else None
    return RnnState(torch.stack(tuple(hidden)).to(kind), cell)


FAMILY = classic_family(
    "Rnn",
    "rnn",
    RnnModel,
    ("layers.{i}.input", "layers.{i}.recurrent"),
    # Zaremba et al. 2014, section 4.1, and the same sizes for the other cells.
    presets={
        f"{cell}-{name}": {
            "cell": cell,
            "embedding_size": size,
            "hidden_size": size,
            "dropout": dropout,
        }
        for cell in ("rnn", "gru", "lstm")
        for name, size, dropout in (
            ("small", 200, 0.0),
            ("medium", 650, 0.5),
            ("large", 1500, 0.65),
        )
    },
)
