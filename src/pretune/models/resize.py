"""A larger vocabulary for a model that has one: embeddings and output layer together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pretune.models.backbone import Backbone
from pretune.models.classics.common import ClassicLM
from pretune.models.heads.language import MaskedLM
from pretune.models.layers import Embedding
from pretune.models.transformer import TransformerModel
from pretune.models.translator import Translator


def resize_vocabulary(model: nn.Module, size: int) -> None:
    """Give a model `size` token embeddings, in place.

    New rows are drawn around the mean of the old ones, in the directions in which those vary
    (a normal distribution with their mean and 1e-9 of their covariance): new tokens start with an
    average probability instead of crowding out the old (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). A tied output layer follows by itself, one with a
    matrix of its own grows in the same way; the bias gets the mean of the old biases.

    Args:
        model: a backbone, or a model that holds one as `backbone`.
        size: rows; not fewer than there are.

    Raises:
        ValueError: fewer rows than there are.
    """
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    old = backbone.embeddings.tokens.weight
    added = size - len(old)
    if added < 0:
        raise ValueError(f"{len(old)} token embeddings cannot become {size}")
    if added == 0:
        return
    backbone.embeddings.tokens = _grown(backbone.embeddings.tokens, added)
    sizes = {"vocab_size": size}
    if isinstance(backbone, TransformerModel) and backbone.embeddings.targets is not None:
        backbone.embeddings.targets = _grown(backbone.embeddings.targets, added)
        sizes["decoder_vocab_size"] = backbone.config.target_size + added
    backbone.config = replace(backbone.config, **sizes)
    if isinstance(model, ClassicLM) and model.output is not None:
        rows = model.output.weight
        with torch.no_grad():
            table = torch.cat([rows, _around(rows, added)])
        model.output.weight = nn.Parameter(table, requires_grad=rows.requires_grad)
        model.output.out_features = size
    if isinstance(model, MaskedLM | ClassicLM):
        bias = model.bias.detach()
        model.bias = nn.Parameter(torch.cat([bias, bias.mean().expand(added)]))
    if isinstance(model, Translator):
        bias = model.bias.detach()
        more = bias.mean().expand(1, added)
        model.bias = nn.Parameter(torch.cat([bias, more], 1), requires_grad=False)


def _grown(embedding: Embedding, added: int) -> Embedding:
    old = embedding.weight
    with torch.no_grad():
        table = torch.cat([old, _around(old, added)])
    grown = Embedding(1, table.shape[1])
    grown.num_embeddings = len(table)
    grown.weight = nn.Parameter(table, requires_grad=old.requires_grad)
    return grown


def _around(rows: Tensor, count: int) -> Tensor:
    """`[count, hidden]` drawn from a normal distribution with the rows' mean and little of their
    covariance."""
    mean = rows.mean(0)
    centred = rows - mean
    # A sum of the centred rows with normal weights has their covariance (times the weights').
    weights = torch.randn(count, len(rows), device=rows.device, dtype=rows.dtype)
    drawn: Tensor = mean + weights @ centred * (1e-9 / len(rows)) ** 0.5
    return drawn
