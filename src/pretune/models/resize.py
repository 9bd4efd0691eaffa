"""A larger vocabulary for a trained model: embeddings and output layer together."""

from __future__ import annotations

from torch import nn

from pretune.models.backbone import backbone_of
from pretune.models.heads.language import LanguageModelHead
from pretune.models.heads.replaced import companion_of, share_embeddings, shares_embeddings


def resize_vocabulary(model: nn.Module, size: int) -> None:
    """Give a model `size` token embeddings, in place; new rows are drawn by `sample_rows`.

    The model is a backbone, or holds one as `backbone`. A tied output layer follows by itself, a
    separate one grows in the same way. New entries of its bias are the mean of the old ones. A
    companion of the model grows with it, and keeps sharing its embeddings.

    Raises:
        ValueError: the model has more rows than that.
    """
    backbone = backbone_of(model)
    old = len(backbone.embeddings.tokens.weight)
    if size < old:
        raise ValueError(f"{old} token embeddings cannot become {size}")
    if size == old:
        return
    companion = companion_of(model)
    shared = companion is not None and shares_embeddings(model)
    backbone.grow_vocabulary(size - old)
    if isinstance(model, LanguageModelHead):
        model.grow_output(size - old)
    if companion is not None:
        resize_vocabulary(companion, size)
        if shared:
            share_embeddings(backbone, backbone_of(companion))
