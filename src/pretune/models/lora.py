"""LoRA (Hu et al. 2021): a matrix that is left as it is, and a small one beside it that learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pretune.errors import RunError
from pretune.models import ops
from pretune.models.backbone import Backbone
from pretune.models.layers import Embedding, Linear

#: Of each layer, what can have one, by our names.
TARGETS = ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")


class LoraLinear(nn.Module):
    """A linear map whose matrix is W + alpha / rank * B A (section 4.1); only A and B learn.

    A starts as random numbers and B as zeros, so that at first nothing is changed.

    Attributes:
        base: W, `[out, in]`.
        bias: `[out]` or None.
        lora_a: A, `[rank, in]`.
        lora_b: B, `[out, rank]`.
        alpha: see there.
    """

    def __init__(self, linear: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.bias = linear.weight, linear.bias
        self.alpha, self.keep_bf16 = alpha, linear.keep_bf16
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as peft

    @property
    def rank(self) -> int:
        """r, the rank of what is added."""
        return len(self.lora_a)

    @property
    def weight(self) -> Tensor:
        """The whole matrix, `[out, in]`."""
        return self.base + (self.alpha / self.rank) * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, in]` to `[rows, out]`."""
        return ops.linear(x, self.weight, self.bias, keep_bf16=self.keep_bf16)


class LearnedRows(nn.Module):
    """A table of embeddings of which some rows learn: those of tokens that the model never saw.

    Attributes:
        base: the table before, `[vocab, hidden]`.
        first: the number of the first row that learns.
        rows: what stands for these rows now, `[rows, hidden]`.
    """

    def __init__(self, table: Embedding, learned: range) -> None:
        super().__init__()
        self.base, self.first = table.weight, learned.start
        self.rows = nn.Parameter(table.weight.detach()[learned.start : learned.stop].clone())

    @property
    def learned(self) -> range:
        """The numbers of the rows that learn."""
        return range(self.first, self.first + len(self.rows))

    @property
    def weight(self) -> Tensor:
        """The whole table, `[vocab, hidden]`."""
        return torch.cat([self.base[: self.first], self.rows, self.base[self.learned.stop :]])

    def forward(self, tokens: Tensor) -> Tensor:
        """`[tokens]` to `[tokens, hidden]`: the gradient is that of a few rows, not of a table."""
        places = tokens - self.first
        new = (places >= 0) & (places < len(self.rows))
        known = nn.functional.embedding(tokens, self.base)
        learned = nn.functional.embedding(places.clamp(0, len(self.rows) - 1), self.rows)
        return torch.where(new[..., None], learned, known)


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    new_tokens: range = range(0),
) -> None:
    """Put matrices that learn beside those of every layer, in place; all else is frozen.

    Args:
        model: holds its backbone as `backbone`.
        rank: of what is added; no more than the matrix itself can have.
        alpha: it is multiplied by alpha / rank.
        targets: of `TARGETS`; one that is named twice counts once.
        new_tokens: their embeddings learn, too.

    Raises:
        RunError: a target that the layers have not, or of a lower rank.
    """
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    model.requires_grad_(False)
    for layer in backbone.layers:
        for target in dict.fromkeys(targets):
            place, _, name = target.rpartition(".")
            holder = getattr(layer, place, None)
            linear = getattr(holder, name, None)
            if holder is None or not isinstance(linear, Linear):
                raise RunError(
                    f"train.lora.targets: the layers of a {backbone.config.model_type} have no "
                    f"'{target}'",
                    "LoRA is for Transformers, such as a GPT-2.",
                )
            if rank > (most := min(linear.in_features, linear.out_features)):
                raise RunError(
                    f"train.lora.rank is {rank:,}, but '{target}' is a matrix of "
                    f"{linear.out_features:,} x {linear.in_features:,}, of rank {most:,} at most",
                    f"Use train.lora.rank={most} or less: 8 is usual.",
                )
            setattr(holder, name, LoraLinear(linear, rank, alpha))
    if new_tokens:
        table = LearnedRows(backbone.embeddings.tokens, new_tokens)
        backbone.embeddings.add_module("tokens", table)


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """All that `add_lora` put into a model, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLinear)}


def learned_rows(model: nn.Module) -> dict[str, LearnedRows]:
    """The tables of a model in which `add_lora` lets new tokens learn, by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LearnedRows)}


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's `state_dict` as if it had been trained whole: what was added is in the matrices."""
    state: dict[str, Tensor] = model.state_dict()
    changed: dict[str, LoraLinear | LearnedRows] = {**adapters(model), **learned_rows(model)}
    for name, part in changed.items():
        for own in ("base", "lora_a", "lora_b", "rows"):
            state.pop(f"{name}.{own}", None)
        state[f"{name}.weight"] = part.weight
    return state
