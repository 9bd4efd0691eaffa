"""ERNIE (Sun et al. 2019 and 2020, arXiv:1904.09223, 1907.12412): a BERT with one more embedding.

Version 2 and 3 add an embedding that says which task of the pre-training a text is for. Published
checkpoints are fine-tuned with task 0, as transformers does by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError
from pretune.models import bert
from pretune.models.bert import (
    ENCODER_IGNORED,
    BertEmbeddings,
    HeadDropoutConfig,
    PooledEncoder,
    bert_heads,
)
from pretune.models.config import MAX_SIZES
from pretune.models.family import rules
from pretune.models.layers import Embedding


@dataclass(frozen=True)
class ErnieConfig(HeadDropoutConfig):
    """The sizes of an ERNIE, under the names of `config.json`.

    Attributes:
        use_task_id: whether there is an embedding for the task.
        task_type_vocab_size: rows of its table.
    """

    model_type: ClassVar[str] = "ernie"

    use_task_id: bool = False
    task_type_vocab_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("task_type_vocab_size", int, 1, MAX_SIZES["type_vocab_size"])
        if not isinstance(self.use_task_id, bool):
            raise CheckpointError("config: use_task_id must be true or false")


class ErnieEmbeddings(BertEmbeddings):
    """BERT's embeddings; to each token that of the first task is added."""

    def __init__(self, config: ErnieConfig) -> None:
        super().__init__(config, config.hidden_size)
        self.tasks: Embedding | None = None
        if config.use_task_id:
            self.tasks = Embedding(config.task_type_vocab_size, config.hidden_size)

    @override
    def summed(self, batch: PackedBatch) -> Tensor:
        x = super().summed(batch)
        return x if self.tasks is None else x + self.tasks.weight[0]


class ErnieModel(PooledEncoder):
    """ERNIE's encoder."""

    config_class = ErnieConfig
    config: ErnieConfig

    def __init__(self, config: ErnieConfig) -> None:
        super().__init__(config, ErnieEmbeddings(config), config.layers())


FAMILY = replace(
    bert.FAMILY,
    model_type="ernie",
    prefix="ernie.",
    backbone=ErnieModel,
    rules=(
        *bert.FAMILY.rules,
        *rules(("embeddings.tasks.weight", "embeddings.task_type_embeddings.weight")),
    ),
    heads=bert_heads("Ernie"),
    ignored=ENCODER_IGNORED,
    # nghuyong/ernie-3.0-*-zh on the Hub, after Baidu's release.
    presets={
        f"ernie-3.0-{name}": {
            "vocab_size": 40000,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": 12,
            "intermediate_size": 4 * hidden,
            "max_position_embeddings": 2048,
            "type_vocab_size": 4,
            "use_task_id": True,
        }
        for name, layers, hidden in (
            ("nano", 4, 312),
            ("micro", 4, 384),
            ("mini", 6, 384),
            ("medium", 6, 768),
            ("base", 12, 768),
        )
    },
)
