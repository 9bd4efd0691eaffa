"""`Backbone`: embeddings and a stack of layers over a packed batch; each family is a subclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models.config import ModelConfig
from pretune.models.few_rows import FewRows
from pretune.models.kv_cache import KVCache
from pretune.models.language_model import SequenceState
from pretune.models.layers import Embedding, ModelOutput, RMSNorm, TransformerLayer
from pretune.models.ops import pad_rows
from pretune.models.rope import Rope, Turns


class Embeddings(nn.Module):
    """Turns a packed batch into its first hidden states."""

    tokens: Embedding  # the table of the vocabulary

    def forward(self, batch: PackedBatch) -> Tensor:
        """Embed the tokens of a batch, `[T, hidden]`."""
        raise NotImplementedError


class TokenEmbeddings(Embeddings):
    """The tokens alone, where positions turn queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.size("vocab_size"), config.size("hidden_size"))

    @override
    def forward(self, batch: PackedBatch) -> Tensor:
        embedded: Tensor = self.tokens(batch.tokens)
        return embedded


class Backbone(nn.Module):
    """A model without a head.

    Class attributes:
        config_class: reads the family's `config.json`.
        causal: whether a token sees only those before it.
        reads_pairs: whether a batch holds pairs of a source and a target.
        has_attention: whether tokens attend to others. Models without attention carry a state from
            token to token instead; see `StatefulLM`.

    Args:
        config: the sizes.
        embeddings: turns tokens into the first hidden states.
        layers: the L layers.
        final_norm: the norm after the last layer of pre-norm models.
    """

    config_class: ClassVar[type[ModelConfig]]
    causal: ClassVar[bool] = False
    reads_pairs: ClassVar[bool] = False
    has_attention: ClassVar[bool] = True

    def __init__(
        self,
        config: ModelConfig,
        embeddings: Embeddings,
        layers: Sequence[nn.Module],
        final_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embeddings = embeddings
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm
        #: In training, compute each layer again in the backward pass instead of keeping its inner
        #: activations (Chen et al. 2016, section 3): less memory for a third more work.
        self.recompute = False
        self.few_rows = FewRows()

    def init_weights(self, module: nn.Module | None = None) -> None:
        """Draw fresh weights: normal(0, initializer_range); biases 0, norms 1 and 0.

        Args:
            module: only this part, such as a new head; default: the whole model. Parts on the meta
                device hold no values and are skipped.
        """
        for part in (module or self).modules():
            if any(parameter.is_meta for parameter in part.parameters(recurse=False)):
                continue
            if isinstance(part, nn.Linear | nn.Embedding | nn.Conv1d):
                nn.init.normal_(part.weight, std=self.config.initializer_range)
                if not isinstance(part, nn.Embedding) and part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, nn.LayerNorm):
                nn.init.ones_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, RMSNorm):
                nn.init.constant_(part.weight, 1.0 - part.offset)
            else:  # a parameter of the module's own, e.g. the bias of a tied output layer
                # Unknown parameters are an error: they must not start as they happen to be.
                for name, parameter in part.named_parameters(recurse=False):
                    if name not in ("bias", "transitions", "start", "end"):  # the last: a Crf's
                        raise TypeError(f"no rule for {type(part).__name__}.{name}")
                    nn.init.zeros_(parameter)

    def forward(
        self,
        batch: PackedBatch,
        *,
        select: Selection | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        state: SequenceState | None = None,
    ) -> ModelOutput:
        """Run the model.

        Args:
            batch: token ids with their layout.
            select: compute the last layer for these rows only. Cheapest for `batch.first` and
                `batch.last`; other rows of a causal model are picked from the full output.
            output_hidden_states: also return the 1 + L hidden states (excludes `select`).
            output_attentions: also return the L attention maps (excludes `select`).
            state: a `KVCache` that a causal model adds keys and values to; see `CausalLM`.

        Raises:
            ValueError: `select` is combined with an output that needs all rows, or the state is not
                a `KVCache`.
        """
        if not isinstance(state, KVCache | None):
            raise ValueError("the state of a Transformer is a KVCache")
        if select is not None and (output_hidden_states or output_attentions):
            raise ValueError("hidden states and attention maps are of all rows: leave out `select`")
        # Kernels are faster on a padded number of rows; the padding is cut off at the end.
        total = batch.num_tokens
        x = pad_rows(self.embeddings(batch))
        # Causal attention aligns queries with the ends of sequences, so that only `last` may be
        # selected before it; other rows are picked from the full output.
        late = select is None or (self.causal and select is not batch.last)

        quick = self.few_rows.functions(self.layers, x, None if late else select)
        turns = self._turns(batch, len(x))

        hidden_states, attentions = [x], []
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, TransformerLayer)  # noqa: S101 - for mypy
            turned = turns.get(layer.attention.rope)
            if output_attentions:
                attentions.append(layer.attention_maps(x, batch.layout, turned))
            last = i == len(self.layers) - 1
            rows = select if last and not late else None
            kept: dict[str, Any] = {} if state is None else {"cache": state, "index": i}
            if turned is not None:
                kept["turns"] = turned
            if quick is None:
                x = self.through(layer, x, batch.layout, select=rows, **kept)
            else:
                x = quick[i](x, batch.layout, rows, state, i, turned)
            if last and self.final_norm is not None:
                x = self.final_norm(x)
            if output_hidden_states:  # else only autograd should hold on to them
                hidden_states.append(x)

        if select is None:
            x = x if total == len(x) else x[:total]
        elif late:
            x = x[select.rows]
        return ModelOutput(
            last_hidden_state=x,
            pooler_output=self.pool(x, batch, select),
            hidden_states=tuple(h[:total] for h in hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _turns(self, batch: PackedBatch, rows: int) -> dict[Rope | None, Turns]:
        """The angles of each kind of rotary positions, for a batch that is padded to `rows`."""
        attentions = [
            layer.attention for layer in self.layers if isinstance(layer, TransformerLayer)
        ]
        ropes = {attention.rope for attention in attentions if attention.rope is not None}
        if not ropes:
            return {}
        positions = F.pad(batch.positions, (0, rows - batch.num_tokens))
        return {rope: rope.turns(positions, batch.layout) for rope in ropes}

    @property
    def stacks(self) -> tuple[int, ...]:
        """Number of layers in each stack: one stack, or an encoder and a decoder."""
        return (len(self.layers),)

    def through(self, layer: nn.Module, x: Tensor, layout: Layout, **options: Any) -> Tensor:
        """Run one layer, without keeping its inner activations if `recompute` is set."""
        if self.recompute and self.training and torch.is_grad_enabled():
            output: Tensor = checkpoint(layer, x, layout, use_reentrant=False, **options)
        else:
            output = layer(x, layout, **options)
        return output

    def grow_vocabulary(self, added: int) -> None:
        """Add rows to the table of tokens; see `resize_vocabulary`, which also grows the head."""
        self.embeddings.tokens = self.embeddings.tokens.grown(added)
        size = self.config.size("vocab_size") + added
        self.config = replace(self.config, vocab_size=size)  # type: ignore[call-arg]

    def renumber_padding(self, number: int) -> None:
        """Prepare for another number of the padding token, for families that count from it."""

    def drop_pooler(self) -> None:
        """Remove the pooler, if there is one, for a head that does not read it."""

    def pool(self, x: Tensor, batch: PackedBatch, select: Selection | None) -> Tensor | None:
        """Give one vector for each sequence, `[B, hidden]`; None for families without a pooler."""
        return None


def backbone_of(model: nn.Module) -> Backbone:
    """Return a model without its head."""
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    return backbone
