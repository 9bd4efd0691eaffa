"""LoRA (Hu et al. 2021): frozen matrices, each with a trained low-rank matrix added to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretune.errors import RunError, with_article
from pretune.models import ops
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.families import FAMILIES
from pretune.models.heads.language import ActorCritic, LanguageModelHead
from pretune.models.layers import Embedding, Linear

#: The matrices of a layer that can be adapted, by our names. Where a feed-forward block has a gate,
#: `feed_forward.up` is the matrix of both.
TARGETS = ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")
#: Those of the attention of a target to its source.
CROSS_TARGETS = ("cross.query", "cross.kv", "cross.output")


class LoraLinear(nn.Module):
    """A linear map with the matrix W + alpha / rank * B A (section 4.1); only A and B are trained.

    A starts random and B starts at zero, so that at first the map is unchanged. Where W is made of
    several published matrices, such as those of query, key and value, each may have a B A of its
    own.

    Attributes:
        base: W, `[out, in]`.
        bias: `[out]` or None.
        blocks: the rows of W that something is added to, ascending.
        lora_a: A of each block, `[blocks * rank, in]`.
        lora_b: B of each block, `[rows of all blocks, rank]`.
        alpha: scale of the added matrix.
    """

    on = True  # off: the map of W alone (see `without_adapters`)
    kept: Tensor | None = None  # the sum of both matrices, while it is kept (see `kept_sums`)
    #: Whether, in inference, both products are computed and added: several adapters of one matrix
    #: then share it, and no sum of matrices takes memory.
    apart = False

    def __init__(
        self, linear: Linear, rank: int, alpha: float, blocks: Sequence[slice] | None = None
    ) -> None:
        super().__init__()
        self.base, self.bias = linear.weight, linear.bias
        self.alpha, self.rank, self.keep_bf16 = alpha, rank, linear.keep_bf16
        self.parts = linear.parts
        self.blocks = [slice(0, linear.out_features)] if blocks is None else [*blocks]
        rows = sum(block.stop - block.start for block in self.blocks)
        new = linear.weight.new_empty
        self.lora_a = nn.Parameter(new(rank * len(self.blocks), linear.in_features))
        self.lora_b = nn.Parameter(new(rows, rank).zero_())
        for part in torch.split(self.lora_a.data, rank):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))  # as peft

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """A and B of each block."""
        rows = [block.stop - block.start for block in self.blocks]
        both = torch.split(self.lora_a, self.rank), torch.split(self.lora_b, rows)
        return [*zip(*both, strict=True)]

    @property
    def weight(self) -> Tensor:
        """The sum of both matrices, `[out, in]`."""
        if not self.on:
            return self.base
        if self.kept is not None:
            return self.kept
        scale, at = self.alpha / self.rank, 0
        parts: list[Tensor] = []
        for block, (a, b) in zip(self.blocks, self.pairs(), strict=True):
            parts += [self.base[at : block.start], self.base[block] + scale * (b @ a)]
            at = block.stop
        parts = [part for part in (*parts, self.base[at:]) if len(part)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[rows, in]` to `[rows, out]`."""
        return self.part(x, slice(0, len(self.base)), keep_bf16=self.keep_bf16)

    def part(self, x: Tensor, outputs: slice, *, keep_bf16: bool = False) -> Tensor:
        """Some of the outputs only."""
        apart = self.apart and self.on and not torch.is_grad_enabled()
        bias = None if self.bias is None else self.bias[outputs]
        weight = self.base if apart else self.weight
        mapped = ops.linear(x, weight[outputs], bias, keep_bf16=keep_bf16)
        return self._added(mapped, x, outputs) if apart else mapped

    def _added(self, mapped: Tensor, x: Tensor, outputs: slice) -> Tensor:
        """Add what A and B make of `x` to what W made of it, in place."""
        start, stop, _ = outputs.indices(len(self.base))
        for block, (a, b) in zip(self.blocks, self.pairs(), strict=True):
            first, last = max(block.start, start), min(block.stop, stop)
            if first < last:
                rows = b[first - block.start : last - block.start]
                more = F.linear(F.linear(x, a), rows)
                mapped[:, first - start : last - start] += (self.alpha / self.rank) * more
        return mapped


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
    model: nn.Module,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    new_tokens: range = range(0),
    *,
    fresh: Collection[str] = (),
) -> None:
    """Add trained low-rank matrices to every layer, in place, and freeze the rest of the backbone.

    A head stays trained as a whole, but for the output layer of a language model. So do parts of
    the backbone that have fresh weights, such as a pooler that the checkpoint had not.

    Args:
        model: holds its backbone as `backbone`.
        rank: of the added matrices; a matrix cannot have a higher rank than its shape allows.
        alpha: the added matrices are multiplied by alpha / rank.
        targets: names from `TARGETS` and `CROSS_TARGETS`; repeated names count once.
        new_tokens: tokens whose embeddings are trained as well.
        fresh: names of parameters whose weights are not from a checkpoint.

    Raises:
        RunError: the layers have no such target or lost heads, the rank is too high, or the output
            layer of a language model is fresh.
    """
    backbone = backbone_of(model)
    if backbone.config.removed_heads:
        raise RunError(
            "train.lora: attention heads were removed from this model: a published one of its size "
            "has wider matrices, and could not use the adapter",
            "Train it as a whole: leave out train.lora.",
        )
    _freeze(model, fresh)
    for target in dict.fromkeys(targets):
        _adapt(backbone, target, rank, alpha)
    # New tokens have no useful embeddings yet: train those rows of the table.
    if new_tokens:
        table = LearnedRows(backbone.embeddings.tokens, new_tokens)
        backbone.embeddings.add_module("tokens", table)


def _freeze(model: nn.Module, fresh: Collection[str]) -> None:
    """Freeze what LoRA leaves as it is: all but heads, and what is fresh in the backbone."""
    # The output layer of a language model belongs to what it has learned; a critic's values do not.
    output = isinstance(model, LanguageModelHead)
    values = {*map(id, model.value.parameters())} if isinstance(model, ActorCritic) else set()
    for name, parameter in model.named_parameters():
        inside = name.startswith("backbone.")
        if inside or (output and id(parameter) not in values):
            if not inside and name in fresh:
                raise RunError(
                    f"train.lora: the output layer of the language model is new ('{name}'), and "
                    "has to be trained as a whole",
                    "Start from a checkpoint that has one, or leave out train.lora.",
                )
            parameter.requires_grad_(inside and name in fresh)


def _adapt(backbone: Backbone, target: str, rank: int, alpha: float) -> None:
    """Replace a target in every layer that has it by a `LoraLinear` around the same matrix."""
    for number, layer in enumerate(backbone.layers):
        place, _, name = target.rpartition(".")
        holder = getattr(layer, place, None)
        # What a gate and the map beside it share.
        if name == "up" and hasattr(holder, "gate_up"):
            name = "gate_up"
        linear = getattr(holder, name, None)
        if isinstance(linear, LoraLinear):  # a layer that is used several times
            continue
        if holder is None or not isinstance(linear, Linear):
            # Layers of an encoder have no source.
            if target in CROSS_TARGETS and number < len(backbone.layers) - 1:
                continue
            raise RunError(
                f"train.lora.targets: the layers of {with_article(backbone.config.model_type)} "
                f"have no '{target}'",
                "LoRA is for Transformers; cross.* is for those that read a source.",
            )
        blocks = blocks_of(backbone, f"layers.{{i}}.{place}.{name}", linear)
        smallest = min(block.stop - block.start for block in blocks)
        if rank > (full := min(linear.in_features, smallest)):
            raise RunError(
                f"train.lora.rank is {rank:,}, but '{target}' is a matrix of "
                f"{smallest:,} x {linear.in_features:,}, of rank {full:,} at most",
                f"Use train.lora.rank={full} or less: 8 is usual.",
            )
        setattr(holder, name, LoraLinear(linear, rank, alpha, blocks))


def blocks_of(backbone: Backbone, ours: str, linear: Linear) -> list[slice]:
    """The rows of each published matrix that lies in one of ours.

    Args:
        backbone: whose family names the published ones.
        ours: the name of the matrix in the family's rules.
        linear: holds it.
    """
    family = FAMILIES[backbone.config.model_type]
    if family.variant is not None:
        family = family.variant(backbone.config.to_dict())
    rule = next((r for r in family.rules if r.ours in (ours, f"{ours}.weight")), None)
    count = 1 if rule is None else len(rule.theirs)
    rows = linear.parts if len(linear.parts) == count else [linear.out_features // count] * count
    ends = [sum(rows[: i + 1]) for i in range(count)]
    return [slice(end - own, end) for own, end in zip(rows, ends, strict=True)]


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
    # A layer that is used several times has a name for each.
    for name, part in model.named_modules(remove_duplicate=False):
        if not isinstance(part, LoraLinear | LearnedRows):
            continue
        for own in ("base", "lora_a", "lora_b", "rows"):
            state.pop(f"{name}.{own}", None)
        state[f"{name}.weight"] = part.weight
    return state
