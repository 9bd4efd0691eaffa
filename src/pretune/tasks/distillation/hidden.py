"""Comparing what lies inside two models: hidden states and the relations between tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models.attention import attention_maps
from pretune.models.backbone import Backbone
from pretune.models.layers import ModelOutput, TransformerLayer, heads_of


@dataclass
class Inside:
    """What a backbone computed for all T tokens of its last batch.

    Attributes:
        hidden: `[T, hidden]` the last hidden states.
        qkv: `[T, 3 * hidden]` queries, keys and values of the last layer.
        heads: how many the last layer has.
        causal: whether a token sees only those before it.
    """

    heads: int
    causal: bool
    hidden: Tensor | None = None
    qkv: Tensor | None = None


@contextmanager
def watched(backbone: Backbone) -> Iterator[Inside]:
    """Keep what a backbone computes; it runs its last layer for all tokens meanwhile.

    Whoever calls it still gets the rows that were selected.
    """
    layer = backbone.layers[-1]
    assert isinstance(layer, TransformerLayer)  # noqa: S101 - others are refused before training
    inside, selected = Inside(layer.attention.num_heads, layer.causal), list[Selection | None]()

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        selected.append(kwargs.get("select"))
        return args, {**kwargs, "select": None}

    def after(module: Any, args: Any, kwargs: Any, output: ModelOutput) -> ModelOutput:
        inside.hidden, select = output.last_hidden_state, selected.pop()
        if select is None:
            return output
        return replace(output, last_hidden_state=output.last_hidden_state[select.rows])

    def keep(module: Any, args: Any, output: Tensor) -> None:
        inside.qkv = output

    hooks = [
        backbone.register_forward_pre_hook(before, with_kwargs=True),
        backbone.register_forward_hook(after, with_kwargs=True),
        layer.attention.qkv.register_forward_hook(keep),
    ]
    try:
        yield inside
    finally:
        for hook in hooks:
            hook.remove()
    # Kernels are faster on a padded number of rows, which are no tokens.
    if inside.qkv is not None and inside.hidden is not None:
        inside.qkv = inside.qkv[: len(inside.hidden)]


def cosine_distances(student: Tensor, teacher: Tensor, batch: PackedBatch) -> Tensor:
    """Compute `[S]`: the mean of 1 - cos between hidden states over the tokens of each sequence.

    The cosine loss of DistilBERT (Sanh et al. 2019, section 3).

    Args:
        student: `[T, hidden]` with its graph.
        teacher: `[T, hidden]`.
        batch: of both.
    """
    far = 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    sums = far.new_zeros(batch.num_sequences).index_add(0, batch.owners, far)
    lengths = torch.tensor(batch.layout.lengths, device=far.device)
    return sums / lengths


def relation_distances(
    student: Tensor, teacher: Tensor, heads: int, layout: Layout, *, causal: bool
) -> Tensor:
    """Compute `[S]`: how differently the last layers relate the tokens of each sequence.

    The loss of MiniLM (Wang et al. 2020, section 3.1 and 3.2): KL(teacher || student) of the
    attention weights, softmax(Q K^T / sqrt(d)), and of the relations of the values,
    softmax(V V^T / sqrt(d)), each a mean over heads and tokens. Only the number of heads must be
    the same, not the width.

    Args:
        student: `[T, 3 * hidden]` queries, keys and values, with their graph.
        teacher: `[T, 3 * its hidden]`.
        heads: of either model.
        layout: of the sequences.
        causal: whether a token sees only those before it.
    """
    distances = student.new_zeros(len(layout.lengths), dtype=torch.float32)
    sides = [heads_of(qkv.float(), 3, heads) for qkv in (student, teacher)]
    for first, second in ((0, 1), (2, 2)):
        mine, theirs = (
            attention_maps(side[first], side[second], layout, layout, causal=causal)
            for side in sides
        )
        far = [
            # A weight of 0 is one that is forbidden on both sides.
            (torch.xlogy(p, p) - p * q.clamp_min(torch.finfo(q.dtype).tiny).log()).sum(-1).mean()
            for q, p in zip(mine, theirs, strict=True)
        ]
        distances = distances + torch.stack(far)
    return distances
