"""The memory of one GPU in training: alone, beside others with a whole model each, or with a shard.

As in `costs`, activations are no formula: forward and backward run on PyTorch's meta device, here
with the casts of bf16 autocast, and the tensors that exist at a time are added up. What processes
hold beside that follows from the shapes of the parameters: how `fully_shard` cuts them, what is
put together while it computes, and DDP's second copy of the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from pretune.data.batch import Layout
from pretune.experiments.costs import (
    FLOAT,
    MOMENTS,
    ByteMasks,
    FusedAttention,
    LiveBytes,
    batch_of,
    known,
    loss_of,
)
from pretune.models.backbone import backbone_of
from pretune.models.heads.replaced import companion_of
from pretune.models.layers import CrossAttention, SelfAttention

#: Bytes of a bf16 number.
HALF = 2
#: What CUDA, cuBLAS and NCCL take beside PyTorch's tensors, and the share of a GPU that its
#: allocator loses to holes. Both are assumptions, not measured here.
CONTEXT, HOLES = 1.5 * 2**30, 0.05
#: Layers that are put together at a time under fsdp: one that computes, and the next.
TOGETHER = 2

_HALVED = {
    F.linear,
    F.scaled_dot_product_attention,
    torch.addmm,
    torch.baddbmm,
    torch.bmm,
    torch.matmul,
    torch.mm,
    Tensor.__matmul__,
    Tensor.bmm,
    Tensor.matmul,
    Tensor.mm,
}
_FULL = {
    F.cross_entropy,
    F.layer_norm,
    F.log_softmax,
    F.nll_loss,
    F.rms_norm,
    F.softmax,
    Tensor.exp,
    Tensor.log_softmax,
    Tensor.logsumexp,
    Tensor.softmax,
    Tensor.sum,
}


class AsAutocast(TorchFunctionMode):
    """Casts as `torch.autocast("cuda", torch.bfloat16)` does, on the meta device, which has none.

    Products are in bf16, norms and losses in float32. With `keep` a weight is cast once, and its
    copy is kept, as in a forward pass; what is recomputed in the backward pass casts it again.
    """

    def __init__(self, *, keep: bool) -> None:
        super().__init__()
        self._keep = keep
        self._copies: Any = WeakTensorKeyDictionary()  # torch gives its methods no types

    @property
    def copies(self) -> int:
        """Bytes of the copies of weights."""
        return sum(HALF * copy.numel() for copy in self._copies.values())

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        cast = self._half if func in _HALVED else _full if func in _FULL else None
        if cast is None:
            return func(*args, **(kwargs or {}))
        return func(*map(cast, args), **{k: cast(v) for k, v in (kwargs or {}).items()})

    def _half(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (self._keep and value.is_leaf and value.requires_grad):
            return value.bfloat16()
        if value not in self._copies:
            with torch.enable_grad():
                self._copies[value] = value.bfloat16()
        return self._copies[value]


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


@dataclass(frozen=True)
class TracedStep:
    """What a micro-batch takes beside weights and moments, in bytes."""

    sequences: int
    tokens: int
    forward: int  # peak up to the loss
    peak: int  # peak with the backward pass and the gradients
    copies: int  # of weights in bf16, part of both

    def beside(self, gradients: int) -> int:
        """Activations and temporary tensors at the peak, without copies of weights."""
        return max(self.forward, self.peak - gradients) - self.copies


def trace_step(
    model: nn.Module, batch: int, length: int, *, bf16: bool, recompute: bool, again: bool
) -> TracedStep:
    """Run forward and backward without values and add up what exists at a time.

    Args:
        model: with its head, on the meta device; afterwards in evaluation mode, without gradients.
        batch: sequences of the micro-batch.
        length: tokens of each.
        bf16: with the casts of bf16 autocast, and dropout of attention inside its kernel.
        recompute: keep only what enters each layer (`train.activation_checkpointing`).
        again: the gradients of an earlier micro-batch exist already.
    """
    inputs = batch_of(model, batch, length)
    parts = [part for part in (model, companion_of(model)) if part is not None]
    with _as_trained(parts, recompute=recompute, bf16=bf16):
        live = LiveBytes(known(model, inputs))
        forward = copies = 0
        for _ in range(1 + again):
            casts = AsAutocast(keep=True) if bf16 else None
            before = live.now
            with live, ByteMasks():
                with FusedAttention(), casts or nullcontext():
                    loss = loss_of(model, inputs, scored=True)
                forward = forward or live.peak - before
                copies = 0 if casts is None else casts.copies
                del casts
                loss.backward()  # type: ignore[no-untyped-call]
            del loss
        model.zero_grad()
    return TracedStep(batch, batch * length, forward, live.peak, copies)


@contextmanager
def _as_trained(parts: Sequence[nn.Module], *, recompute: bool, bf16: bool) -> Iterator[None]:
    """Context in which models train as on a GPU; afterwards they are as they were, to evaluate."""
    attentions = [
        module
        for part in parts
        for module in part.modules()
        if isinstance(module, SelfAttention | CrossAttention)
    ]
    rates = [(attention, attention.dropout) for attention in attentions]
    for part in parts:
        part.train()
        if recompute:
            backbone_of(part).through = partial(_through, bf16)  # type: ignore[method-assign]
    # FlashAttention drops weights without keeping them; it knows bf16, and no added scores.
    for attention in attentions:
        if bf16 and getattr(attention, "_score_bias", (None,))[0] is None:
            attention.dropout = 0.0
    try:
        yield
    finally:
        for attention, rate in rates:
            attention.dropout = rate
        for part in parts:
            vars(backbone_of(part)).pop("through", None)
            part.eval()


def _through(bf16: bool, layer: nn.Module, x: Tensor, layout: Layout, **options: Any) -> Tensor:
    """Run a layer as `Backbone.through` does with `recompute`, in our modes the second time too.

    The backward pass has no function modes of its own.
    """

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _modes(bf16)

    output: Tensor = checkpoint(
        layer, x, layout, use_reentrant=False, context_fn=contexts, **options
    )
    return output


@contextmanager
def _modes(bf16: bool) -> Iterator[None]:
    """The modes of a forward pass, for layers that are computed again."""
    with ByteMasks(), FusedAttention(), AsAutocast(keep=False) if bf16 else nullcontext():
        yield


@dataclass(frozen=True)
class GpuMemory:
    """The memory of one GPU, in bytes, for one way to train."""

    parallel: str  # "ddp" or "fsdp"
    recompute: bool
    micro_batch: int  # sequences
    weights: int  # in float32: they are the master copies
    gradients: int
    optimizer: int
    average: int  # moving average of the weights
    others: int  # models beside the one that learns: a reference, a teacher
    exchange: int  # buffers: gradients to be sent, layers that are put together
    copies: int  # of weights in bf16, from autocast
    activations: int
    reserve: int  # of CUDA and the allocator
    capacity: int

    @property
    def total(self) -> int:
        """All of it."""
        held = self.weights + self.gradients + self.optimizer + self.average + self.others
        return held + self.exchange + self.copies + self.activations + self.reserve

    @property
    def fits(self) -> bool:
        """Whether one GPU has so much."""
        return self.total <= self.capacity


@dataclass(frozen=True)
class Sizes:
    """The bytes of a model's parameters in float32, whole and as shards."""

    parameters: int
    trained: int
    shard: int  # of the first process, which has the most
    trained_shard: int
    layer: int  # the largest layer
    rest: int  # what lies outside the layers: embeddings, heads
    trained_layer: int  # the largest, of what learns
    trained_rest: int

    @classmethod
    def of(cls, model: nn.Module, processes: int) -> Sizes:
        """Measure a model that `fully_shard` would cut up for so many processes."""
        layers = list(backbone_of(model).layers)
        inside = {id(p) for layer in layers for p in layer.parameters()}
        every = list(model.parameters())
        rest = [p for p in every if id(p) not in inside]
        each = [list(layer.parameters()) for layer in layers]
        return cls(
            parameters=_bytes(every),
            trained=_bytes(every, trained=True),
            shard=sum(_shard(p, processes) for p in every),
            trained_shard=sum(_shard(p, processes) for p in every if p.requires_grad),
            layer=max(map(_bytes, each), default=0),
            rest=_bytes(rest),
            trained_layer=max((_bytes(own, trained=True) for own in each), default=0),
            trained_rest=_bytes(rest, trained=True),
        )


def _bytes(parameters: Sequence[Tensor], *, trained: bool = False) -> int:
    return FLOAT * sum(p.numel() for p in parameters if p.requires_grad or not trained)


def _shard(parameter: Tensor, processes: int) -> int:
    """Bytes of a process's rows: as many as the first process has, which all make room for."""
    rows = len(parameter) if parameter.ndim else 1
    return FLOAT * math.ceil(rows / processes) * (parameter.numel() // max(rows, 1))


def gpu_memory(
    sizes: Sizes,
    step: TracedStep,
    *,
    parallel: str,
    recompute: bool,
    processes: int,
    accumulates: bool,
    average: bool,
    others: int,
    capacity: float,
) -> GpuMemory:
    """Add up what one of some processes holds at the peak of an update.

    Args:
        sizes: of the model, for so many processes.
        step: the traced micro-batch.
        parallel: "ddp" or "fsdp"; the same for one process.
        recompute: whether the step was traced so.
        processes: GPUs in all.
        accumulates: whether an update has more than one micro-batch.
        average: whether there is a moving average of the weights.
        others: bytes of other models, whole on each GPU.
        capacity: bytes of a GPU.
    """
    if parallel == "fsdp" and processes > 1:
        weights, trained = sizes.shard, sizes.trained_shard
        # Until the last micro-batch nothing is exchanged, so that gradients add up whole.
        gradients = trained + (sizes.trained if accumulates else 0)
        # What lies outside the layers stays together until the backward pass is over. The largest
        # gradient is whole before its sum is cut up.
        exchange = sizes.rest + TOGETHER * sizes.layer
        exchange += 0 if accumulates else max(sizes.trained_layer, sizes.trained_rest)
    else:
        weights = sizes.parameters
        trained = gradients = sizes.trained
        exchange = sizes.trained if processes > 1 else 0  # DDP's buckets
    return GpuMemory(
        parallel=parallel,
        recompute=recompute,
        micro_batch=step.sequences,
        weights=weights,
        gradients=gradients,
        optimizer=MOMENTS * trained,
        average=trained if average else 0,
        others=others,
        exchange=exchange,
        copies=step.copies,
        activations=step.beside(sizes.trained),
        reserve=round(CONTEXT + HOLES * capacity),
        capacity=round(capacity),
    )
