"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT's layers, no segments and no pooler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pretune.data.batch import PackedBatch
from pretune.models.backbone import Backbone, Embeddings
from pretune.models.config import LARGEST, ModelConfig
from pretune.models.layers import Dropout, Embedding, PostNormLayer, sinusoidal_positions

#: In transformers' code rather than in `config.json`.
EPS = 1e-12


@dataclass(frozen=True)
class DistilBertConfig(ModelConfig):
    """The sizes of a DistilBERT, under the names of `config.json`; defaults as published."""

    model_type: ClassVar[str] = "distilbert"
    names: ClassVar[dict[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    }
    dropout_names: ClassVar[tuple[str, ...]] = ("dropout",)
    attention_dropout_name: ClassVar[str] = "attention_dropout"
    activation_name: ClassVar[str] = "activation"

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    sinusoidal_pos_embds: bool = False
    n_layers: int = 6
    n_heads: int = 12
    dim: int = 768
    hidden_dim: int = 3072
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu"
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        self.check_common()
        for name in ("qa_dropout", "seq_classif_dropout"):
            self.check(name, float, 0, 1)
        self.check("pad_token_id", int, -1, LARGEST["vocab_size"])
        if self.sinusoidal_pos_embds:
            self.check_sinusoids()


class DistilBertEmbeddings(Embeddings):
    """LayerNorm(token + position), then dropout.

    `sinusoidal_pos_embds` says only how the positions were started: they are in the checkpoint,
    as parameters.
    """

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.tokens = Embedding(config.vocab_size, config.dim)
        self.positions = Embedding(config.max_position_embeddings, config.dim)
        self.norm = nn.LayerNorm(config.dim, eps=EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, batch: PackedBatch) -> Tensor:
        """`[T, hidden]`."""
        x = self.tokens(batch.tokens) + self.positions(batch.positions)
        embedded: Tensor = self.dropout(self.norm(x))
        return embedded


class DistilBertModel(Backbone):
    """The encoder: packed batch in, hidden states out."""

    config_class = DistilBertConfig
    config: DistilBertConfig

    def __init__(self, config: DistilBertConfig) -> None:
        layers = [
            PostNormLayer(
                config.dim,
                config.n_heads,
                config.hidden_dim,
                config.activation,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                eps=EPS,
                # transformers' DistilBERT has no dropout on the attention's output.
                dropout_attended=0.0,
            )
            for _ in range(config.n_layers)
        ]
        super().__init__(config, DistilBertEmbeddings(config), layers)
        self.init_weights()

    def init_weights(self, module: nn.Module | None = None) -> None:
        """As `Backbone`'s; the positions are sinusoids at the start where the config says so."""
        super().init_weights(module)
        positions = self.embeddings.get_submodule("positions").get_parameter("weight")
        if self.config.sinusoidal_pos_embds and not positions.is_meta and module is None:
            table = sinusoidal_positions(*positions.shape)
            positions.data.copy_(table)
