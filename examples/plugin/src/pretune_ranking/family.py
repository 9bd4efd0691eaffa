"""The family `relu2-bert`: a BERT whose feed-forward layers have squared ReLUs.

So et al. 2021, "Primer: Searching for Efficient Transformers for Language Modeling", section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from pretune.models import bert
from pretune.models.layers import ACTIVATIONS


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return F.relu(x).square()


# Under transformers' name for it, which config.json then has as `hidden_act`.
ACTIVATIONS.setdefault("relu2", squared_relu)


@dataclass(frozen=True)
class Relu2BertConfig(bert.BertConfig):
    """The sizes of such a BERT."""

    model_type: ClassVar[str] = "relu2-bert"
    hidden_act: str = "relu2"


class Relu2BertModel(bert.BertModel):
    """BERT's encoder, built from a config of this family."""

    config_class = Relu2BertConfig


#: BERT's heads, parameter names and sizes, under a `model_type` that transformers does not have.
FAMILY = replace(
    bert.FAMILY,
    model_type="relu2-bert",
    backbone=Relu2BertModel,
    published=False,
    presets={f"relu2-{name}": sizes for name, sizes in bert.FAMILY.presets.items()},
)
