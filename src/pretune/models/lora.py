"""LoRA (Hu et al. 2021): frozen matrices, each with a trained low-rank matrix added to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pretune.errors import RunError, with_article
from pretune.models import ops
from pretune.models.backbone import Backbone
from pretune.models.layers import Embedding, Linear

#: The matrices of a layer that can be adapted, by our names.
TARGETS = ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")


class LoraLinear(nn.Module):
    """A linear map with the matrix W + alpha / rank * B A (section 4.1); only A and B are trained.

    A starts random and B starts at zero, so that at first the map is unchanged.

    Attributes:
        base: W, `[out, in]`.
        bias: `[out]` or None.
        lora_a: A, `[rank, in]`.
        lora_b: B, `[out, rank]`.
        alpha: scale of the added matrix.
    """

    on = True  # off: the map of W alone (see `without_adapters`)
    kept: Tensor | None = None  # the sum of both matrices, while it is kept (see `kept_sums`)

    def __init__(self, linear: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.bias = linear.weight, linear.bias
        self.alpha, self.keep_bf16 = alpha, linear.keep_bf16
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as peft

    @property
    def rank(self) -> int:
        """r, the rank of the added matrix."""
        return len(self.lora_a)

    @property
    def weight(self) -> Tensor:
        """The sum of both matrices, `[out, in]`."""
        if not self.on:
            return self.base
        if self.kept is not None:
            return self.kept
        return self.base + (self.alpha / self.rank) * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[rows, in]` to `[rows, out]`."""
        return ops.linear(x, self.weight, self.bias, keep_bf16=self.keep_bf16)

    def part(self, x: Tensor, outputs: slice) -> Tensor:
        """Some of the outputs only."""
        bias = None if self.bias is None else self.bias[outputs]
        return ops.linear(x, self.weight[outputs], bias)


class LearnedRows(nn.Module):
    """A frozen table of embeddings with some trained rows, for tokens that are new to the model.

    Attributes:
        base: the frozen table, `[vocab, hidden]`.
        first: the number of the first trained row.
        rows: the trained rows, `[rows, hidden]`, which replace rows of `base`.
    """

    on = True  # off: the table of `base` alone
    kept: Tensor | None = None  # the table with the trained rows, while it is kept

    def __init__(self, table: Embedding, learned: range) -> None:
        super().__init__()
        self.base, self.first = table.weight, learned.start
        self.rows = nn.Parameter(table.weight.detach()[learned.start : learned.stop].clone())

    @property
    def learned(self) -> range:
        """The numbers of the trained rows."""
        return range(self.first, self.first + len(self.rows))

    @property
    def weight(self) -> Tensor:
        """The table with the trained rows, `[vocab, hidden]`."""
        if not self.on:
            return self.base
        if self.kept is not None:
            return self.kept
        return torch.cat([self.base[: self.first], self.rows, self.base[self.learned.stop :]])

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed `[tokens]` as `[tokens, hidden]`; the gradient is that of a few rows."""
        if not self.on:
            return nn.functional.embedding(tokens, self.base)
        places = tokens - self.first
        new = (places >= 0) & (places < len(self.rows))
        known = nn.functional.embedding(tokens, self.base)
        learned = nn.functional.embedding(places.clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(new[..., None], learned, known)


def add_lora(
    model: nn.Module, rank: int, alpha: float, targets: Sequence[str], new_tokens: range = range(0)
) -> None:
    """Add trained low-rank matrices to every layer, in place, and freeze the rest of the backbone.

    A head that adds parameters to the backbone, such as one of values, stays trained as a whole.

    Args:
        model: holds its backbone as `backbone`.
        rank: of the added matrices; a matrix cannot have a higher rank than its shape allows.
        alpha: the added matrices are multiplied by alpha / rank.
        targets: names from `TARGETS`; repeated names count once.
        new_tokens: tokens whose embeddings are trained as well.

    Raises:
        RunError: the layers have no such target or lost heads, or the rank is too high.
    """
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    if backbone.config.removed_heads:
        raise RunError(
            "train.lora: attention heads were removed from this model: a published one of its size "
            "has wider matrices, and could not use the adapter",
            "Train it as a whole: leave out train.lora.",
        )
    backbone.requires_grad_(False)
    # Replace each target in every layer by a LoraLinear around the same matrix.
    for layer in backbone.layers:
        for target in dict.fromkeys(targets):
            place, _, name = target.rpartition(".")
            holder = getattr(layer, place, None)
            linear = getattr(holder, name, None)
            if holder is None or not isinstance(linear, Linear):
                raise RunError(
                    f"train.lora.targets: the layers of {with_article(backbone.config.model_type)} "
                    f"have no '{target}'",
                    "LoRA is for Transformers, such as GPT-2.",
                )
            if rank > (full := min(linear.in_features, linear.out_features)):
                raise RunError(
                    f"train.lora.rank is {rank:,}, but '{target}' is a matrix of "
                    f"{linear.out_features:,} x {linear.in_features:,}, of rank {full:,} at most",
                    f"Use train.lora.rank={full} or less: 8 is usual.",
                )
            setattr(holder, name, LoraLinear(linear, rank, alpha))
    # New tokens have no useful embeddings yet: train those rows of the table.
    if new_tokens:
        table = LearnedRows(backbone.embeddings.tokens, new_tokens)
        backbone.embeddings.add_module("tokens", table)


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted matrices of a model, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLinear)}


def learned_rows(model: nn.Module) -> dict[str, LearnedRows]:
    """The embedding tables of a model that have trained rows, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LearnedRows)}


def _changed(model: nn.Module) -> dict[str, LoraLinear | LearnedRows]:
    """Everything that `add_lora` put into a model, by name."""
    return {**adapters(model), **learned_rows(model)}


@contextmanager
def kept_sums(model: nn.Module) -> Iterator[None]:
    """Context in which nothing is trained: sums of matrices are computed once.

    Text that is written token by token would add them up for every token.
    """
    parts = list(_changed(model).values())
    with torch.no_grad():
        for part in parts:
            part.kept = part.weight
    try:
        yield
    finally:
        for part in parts:
            part.kept = None


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Context in which a model computes with its frozen weights alone."""
    parts = list(_changed(model).values())
    for part in parts:
        part.on = False
    try:
        yield
    finally:
        for part in parts:
            part.on = True


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict` of a model without adapters: added matrices are merged into the others."""
    state: dict[str, Tensor] = model.state_dict()
    for name, part in _changed(model).items():
        for own in ("base", "lora_a", "lora_b", "rows"):
            state.pop(f"{name}.{own}", None)
        state[f"{name}.weight"] = part.weight
    return state
