"""The first neural language model: a window of embeddings (Bengio et al. 2003, JMLR 3:1137-1155).

Section 2, equation 1, with x the embeddings of the n - 1 tokens before, end to end:

    y = b + W x + U tanh(d + H x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from pretune.data.batch import PackedBatch, Selection
from pretune.errors import CheckpointError
from pretune.models.backbone import Embeddings
from pretune.models.classics.common import (
    NO_TOKEN,
    ClassicConfig,
    ClassicModel,
    ClassicOutput,
    WindowState,
    classic_family,
)
from pretune.models.layers import Dropout, Embedding, Linear
from pretune.models.ops import pad_rows


@dataclass(frozen=True)
class NnlmConfig(ClassicConfig):
    """The sizes; the defaults are MLP9 and MLP10 of the paper's table 1, with W.

    Attributes:
        order: n: a token is predicted from the n - 1 tokens before it.
        embedding_size: m.
        hidden_size: h.
        direct_connections: whether the output layer also reads the embeddings (W; else 0).
        dropout: before the output layer; the paper has none.
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

    @override
    def size(self, name: str) -> int:
        return 1 if name == "num_hidden_layers" else super().size(name)


def windows(batch: PackedBatch, before: WindowState) -> Tensor:
    """The n - 1 tokens that end with each token, oldest first: `[T, n - 1]` int64.

    To the left of its sequence, a window takes tokens from the sequence's state in `before`, never
    from another sequence.
    """
    width, device = before.window.shape[1], batch.tokens.device
    lengths = batch.cu_seqlens.diff().long()
    sequence = torch.repeat_interleave(lengths, output_size=batch.num_tokens)
    back = torch.arange(width - 1, -1, -1, device=device)
    # Counted from the layout, as positions of a later piece of a text do not begin at 0.
    row = torch.arange(batch.num_tokens, device=device)[:, None]
    within = row - batch.cu_seqlens[:-1].long()[sequence][:, None] - back
    # `within` is the position in the sequence; negative ones are in the state before it.
    here = batch.tokens[(row - back).clamp(min=0)]
    earlier = before.window[sequence[:, None], (within + width).clamp(max=width - 1)]
    return torch.where(within >= 0, here, earlier)


class NnlmEmbeddings(Embeddings):
    """The embeddings of a window, end to end.

    To the left of a text there is one learned vector at every place; the paper does not say.
    """

    def __init__(self, config: NnlmConfig) -> None:
        super().__init__()
        self.order = config.order
        self.tokens = Embedding(config.vocab_size, config.embedding_size)
        self.start = Embedding(1, config.embedding_size)

    def embed(self, window: Tensor) -> Tensor:
        """Embed windows: `[R, n - 1]` token ids to `[R, (n - 1) m]`."""
        known = self.tokens(window.clamp(min=0))
        return torch.where(window[..., None] == NO_TOKEN, self.start.weight, known).flatten(1)

    def initial(self, count: int) -> WindowState:
        """The state of `count` sequences of which nothing has been read."""
        shape, device = (count, self.order - 1), self.tokens.weight.device
        return WindowState(torch.full(shape, NO_TOKEN, dtype=torch.int64, device=device))

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        return self.embed(windows(batch, self.initial(batch.num_sequences)))


class NnlmLayer(nn.Module):
    """tanh(d + H x), followed by x itself if the output layer reads that too."""

    def __init__(self, config: NnlmConfig) -> None:
        super().__init__()
        self.direct = config.direct_connections
        self.hidden = Linear(config.window, config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[R, (n - 1) m]` to `[R, h]`, with direct connections to `[R, h + (n - 1) m]`."""
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
    @override
    def features(self) -> int:
        config = self.config
        return config.hidden_size + (config.window if config.direct_connections else 0)

    @override
    def init_weights(self, module: nn.Module | None = None) -> None:
        """Draw fresh weights: H uniform within 1 / sqrt((n - 1) m), the rest as in `Backbone`.

        The paper only says that they are random. This is PyTorch's own bound and, up to a constant,
        that of LeCun et al. 1998 ("Efficient BackProp", section 4.6) for a tanh that is not
        saturated.
        """
        super().init_weights(module)
        for part in (module or self).modules():
            if isinstance(part, NnlmLayer) and not part.hidden.weight.is_meta:
                part.hidden.reset_parameters()
                nn.init.zeros_(part.hidden.bias)

    @override
    def initial(self, count: int) -> WindowState:
        return self.embeddings.initial(count)

    @override
    def run(
        self,
        batch: PackedBatch,
        before: WindowState,
        select: Selection | None,
        output_hidden_states: bool,
    ) -> ClassicOutput:
        # Rows do not depend on each other: only those that were asked for are computed.
        window = windows(batch, before)
        read = window if select is None else window[select.rows]
        x = self.embeddings.embed(read)
        # Kernels are faster on a padded number of rows.
        padded = pad_rows(x)
        (layer,) = self.layers
        if self.recompute and self.training and torch.is_grad_enabled():
            hidden = checkpoint(layer, padded, use_reentrant=False)
        else:
            hidden = layer(padded)
        hidden = hidden[: len(x)]
        return ClassicOutput(
            last_hidden_state=hidden,
            hidden_states=(x, hidden) if output_hidden_states else None,
            state=WindowState(window[batch.last.rows]),
        )


FAMILY = classic_family(
    "Nnlm",
    "nnlm",
    NnlmModel,
    ("embeddings.start.weight", "layers.{i}.hidden"),
    presets={"nnlm": {}},  # MLP10 of the paper's table 1
)
