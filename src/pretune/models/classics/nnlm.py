"""The first neural language model: a window of embeddings (Bengio et al. 2003, JMLR 3:1137-1155).

Section 2, equation 1, with x the embeddings of the n - 1 tokens before, end to end:

    y = b + W x + U tanh(d + H x)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Embeddings
from pretune.models.classics.common import ClassicConfig, ClassicModel, ClassicOutput
from pretune.models.language_model import SequenceState
from pretune.models.layers import Dropout, Embedding, Linear
from pretune.models.ops import padded_rows

#: In a window: here the text had not begun yet.
BEFORE = -1


@dataclass(frozen=True)
class NnlmConfig(ClassicConfig):
    """The sizes; the defaults are those of the paper's MLP9 and MLP10 (table 1), with its W.

    Attributes:
        order: n: a token is predicted from the n - 1 before it.
        embedding_size: m.
        hidden_size: h.
        direct_connections: whether the output layer also reads the embeddings (W; else 0).
        dropout: of what the output layer reads; the paper has none.
    """

    model_type: ClassVar[str] = "nnlm"

    order: int = 5
    embedding_size: int = 30
    hidden_size: int = 100
    direct_connections: bool = True

    def __post_init__(self) -> None:
        self.check_classic()
        self.check("order", int, 2, 1000)
        self.check_flag("direct_connections")
        if self.window > 1_000_000:
            raise CheckpointError(
                f"config: a window of {self.window:,} numbers (order {self.order}, embedding_size "
                f"{self.embedding_size}) is more than a million"
            )

    @property
    def window(self) -> int:
        """The width of x: (n - 1) m."""
        return (self.order - 1) * self.embedding_size

    def size(self, name: str) -> int:
        """As `ModelConfig.size`; there is one hidden layer."""
        return 1 if name == "num_hidden_layers" else super().size(name)


@dataclass(frozen=True)
class NnlmState:
    """The last tokens of each sequence.

    Attributes:
        window: `[B, n - 1]` int64 token ids, oldest first; -1 before the beginning.
    """

    window: Tensor

    @property
    def count(self) -> int:
        """B."""
        return len(self.window)

    def select(self, index: Tensor | Sequence[int]) -> NnlmState:
        """The states of some sequences."""
        rows = torch.as_tensor(index, dtype=torch.int64, device=self.window.device)
        return NnlmState(self.window.index_select(0, rows))

    def joined(self, other: NnlmState) -> NnlmState:
        """The states of these sequences, then those of the other's."""
        return NnlmState(torch.cat([self.window, other.window]))

    def detach(self) -> NnlmState:
        """Itself: token ids have no gradient."""
        return self


def windows(batch: PackedBatch, before: NnlmState) -> Tensor:
    """The last n - 1 tokens up to and with each one, oldest first: `[T, n - 1]` int64.

    Where a window reaches beyond the beginning of its sequence, it goes on in the sequence's own
    `before`: it never holds a token of another one.
    """
    width, device = before.window.shape[1], batch.tokens.device
    lengths = batch.cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths, output_size=batch.num_tokens)
    back = torch.arange(width - 1, -1, -1, device=device)
    # Counted from the layout: the positions of a later piece of a text need not begin at 0.
    row = torch.arange(batch.num_tokens, device=device)[:, None]
    within = row - batch.cu_seqlens[:-1].long()[sequence][:, None] - back
    here = batch.tokens[(row - back).clamp(min=0)]
    earlier = before.window[sequence[:, None], (within + width).clamp(max=width - 1)]
    return torch.where(within >= 0, here, earlier)


class NnlmEmbeddings(Embeddings):
    """The embeddings of a window, end to end.

    In the place of tokens before the beginning stands one learned vector, the same at each of the
    places (the paper does not say what it does there).
    """

    def __init__(self, config: NnlmConfig) -> None:
        super().__init__()
        self.order = config.order
        self.tokens = Embedding(config.vocab_size, config.embedding_size)
        self.start = Embedding(1, config.embedding_size)

    def embed(self, window: Tensor) -> Tensor:
        """`[R, n - 1]` token ids to `[R, (n - 1) m]`."""
        known = self.tokens(window.clamp(min=0))
        return torch.where(window[..., None] == BEFORE, self.start.weight, known).flatten(1)

    def initial(self, count: int) -> NnlmState:
        """Nothing read yet."""
        shape, device = (count, self.order - 1), self.tokens.weight.device
        return NnlmState(torch.full(shape, BEFORE, dtype=torch.int64, device=device))

    def forward(self, batch: PackedBatch) -> Tensor:
        """`[T, (n - 1) m]`."""
        return self.embed(windows(batch, self.initial(batch.num_sequences)))


class NnlmLayer(nn.Module):
    """tanh(d + H x), beside it x itself where the output layer is to read that too."""

    def __init__(self, config: NnlmConfig) -> None:
        super().__init__()
        self.direct = config.direct_connections
        self.hidden = Linear(config.window, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, (n - 1) m]` to `[R, h]`, or to `[R, h + (n - 1) m]`."""
        hidden = torch.tanh(self.hidden(x))
        read: Tensor = self.dropout(torch.cat([hidden, x], dim=1) if self.direct else hidden)
        return read


class NnlmModel(ClassicModel):
    """A window of embeddings and a hidden layer, over a packed batch.

    With direct connections `last_hidden_state` is `[tanh(d + H x), x]`, so that one matrix `[U, W]`
    on it, with the bias b, is equation 1.
    """

    config_class = NnlmConfig
    config: NnlmConfig
    embeddings: NnlmEmbeddings

    def __init__(self, config: NnlmConfig) -> None:
        super().__init__(config, NnlmEmbeddings(config), [])
        self.layers = nn.ModuleList([NnlmLayer(config)])
        self.init_weights()

    @property
    def features(self) -> int:
        """h, with direct connections h + (n - 1) m."""
        config = self.config
        return config.hidden_size + (config.window if config.direct_connections else 0)

    def init_weights(self, module: nn.Module | None = None) -> None:
        """Fresh weights: as `Backbone`'s, but H uniform within 1 / sqrt((n - 1) m), torch's own.

        (The paper only says that they are random. The bound is that of LeCun et al. 1998,
        "Efficient BackProp", section 4.6, up to a constant: a tanh that is not saturated.)
        """
        super().init_weights(module)
        for part in (module or self).modules():
            if isinstance(part, NnlmLayer) and not part.hidden.weight.is_meta:
                part.hidden.reset_parameters()
                nn.init.zeros_(part.hidden.bias)

    def initial(self, count: int) -> NnlmState:
        """The state of `count` sequences of which nothing was read yet."""
        return self.embeddings.initial(count)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        state: SequenceState | None = None,
    ) -> ClassicOutput:
        """As `ClassicModel.forward`; only the selected rows are computed at all."""
        before = self.begin(batch, select, output_hidden_states, output_attentions, state)
        assert isinstance(before, NnlmState)  # noqa: S101 - for mypy
        window = windows(batch, before)
        read = window if select is None else window[select.rows]
        x = self.embeddings.embed(read)
        padded = F.pad(x, (0, 0, 0, padded_rows(len(x), x.device) - len(x)))
        (layer,) = self.layers
        if self.recompute and self.training and torch.is_grad_enabled():
            hidden = checkpoint(layer, padded, use_reentrant=False)
        else:
            hidden = layer(padded)
        hidden = hidden[: len(x)]
        return ClassicOutput(
            last_hidden_state=hidden,
            hidden_states=(x, hidden) if output_hidden_states else None,
            state=NnlmState(window[batch.last.rows]),
        )
