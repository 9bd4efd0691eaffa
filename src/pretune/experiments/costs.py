"""What a model costs: floating-point operations and memory, before a weight is loaded.

Memory is no formula here. The model runs forward and backward on PyTorch's meta device, where
tensors have shapes and lifetimes but no values, and `LiveBytes` adds up the tensors that exist at a
time: everything that autograd keeps and every temporary, at the given batch and length. A process
takes more, as the allocator leaves holes: that factor alone was measured.

Operations are a formula. `torch.utils.flop_counter` counts what a call computes, which is less: in
a classifier only one token of a sequence goes through the last layer, and a masked LM decodes only
the masked tokens. Published numbers count every token in every layer. Where a call does that too,
both agree (tests/experiments/test_costs.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.families import FAMILIES, build_head
from pretune.models.heads.language import LanguageModelHead, MaskedLM
from pretune.models.heads.pooled import PooledHead
from pretune.models.heads.replaced import Detection, companion_of
from pretune.models.heads.token import CrfTagger, TagScores
from pretune.models.layers import TransformerLayer

#: Bytes of a float32.
FLOAT = 4
#: AdamW keeps a mean of the gradient and a mean of its square for each parameter.
MOMENTS = 2
#: Bytes that a process takes for each byte of activations and gradients that exists at a time, as
#: glibc's allocator leaves holes. Measured (glibc 2.36; MiniLM and BERT-base, batches of 2,048 to
#: 4,096 tokens): 1.42 to 1.45 in training, 1.61 to 1.78 in inference.
TRAINING_SLACK, INFERENCE_SLACK = 1.45, 1.7
#: Share of tokens that a masked LM predicts in training (Devlin et al. 2019, section 3.1).
MASKED = 0.15


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the forward pass; a multiply-add counts as two."""

    length: int
    matrix_parameters: int  # without embeddings that are only looked up
    attention: int  # operations per token to compare its query with all keys and to mix all values
    per_token: int
    per_sequence: int  # operations of all tokens, and of pooler and classifier, which run once

    @property
    def training_per_token(self) -> int:
        """Operations forward and backward: the backward pass has two products for each one."""
        return 3 * self.per_token


def count_flops(model: nn.Module, length: int) -> Flops:
    """Count the operations of a forward pass over a sequence, every token in every layer.

        per token = 2 x matrix parameters + 4 x length x width of all heads x layers

    The first term is a multiply-add for each weight. The second is the two products of attention,
    `Q K^T` and weights times `V`, of 2 x length x hidden each (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B, whose
    6 N + 12 L H Q T per token is this, forward and backward). As there, biases, activations,
    LayerNorm and softmax do not count, and a causal model counts with the half of attention that
    its mask discards.

    Of a pair of source and target, half of the tokens are on each side, and each goes through the
    matrices of its own stack only.

    Args:
        model: a backbone, or a model with a head, on any device.
        length: tokens of a sequence, or of a pair.
    """
    backbone = backbone_of(model)
    config = backbone.config
    # Weights that every token is multiplied with, and weights that are used once a sequence.
    each_token, each_sequence = 0, 0
    for name, module in model.named_modules(remove_duplicate=False):  # a layer may run many times
        if not isinstance(module, nn.Linear):
            continue
        if _once_a_sequence(model, name):
            each_sequence += module.weight.numel()
        else:
            each_token += module.weight.numel()
    if _tied(model):
        each_token += config.size("vocab_size") * backbone.embeddings.tokens.weight.shape[1]
    layers = float(config.size("num_hidden_layers") if backbone.has_attention else 0)
    if backbone.reads_pairs:
        # Half of the tokens are in each stack, where they see half of the tokens; a token of the
        # target also attends to the source, in each layer.
        layers = (layers + backbone.stacks[1]) / 4
        each_token //= 2
    # A head may have a width of its own; those that were removed have no queries.
    first = backbone.layers[0] if backbone.has_attention else None
    head = 0
    if isinstance(first, TransformerLayer):
        head = first.attention.width // first.attention.num_heads
    heads = config.size("num_attention_heads") * layers
    width = head * (heads - sum(map(len, config.removed_heads.values())))
    attention = round(4 * length * width)
    per_token = 2 * each_token + attention
    whole = length * per_token + 2 * each_sequence
    return Flops(length, each_token, attention, per_token, whole)


def _once_a_sequence(model: nn.Module, name: str) -> bool:
    """Tell whether a matrix is applied to one vector of each sequence, not to every token."""
    if name.rpartition(".")[2] in ("pooler", "relationship"):
        return True
    return isinstance(model, PooledHead) and not name.startswith("backbone.")


def _tied(model: nn.Module) -> bool:
    """Tell whether the table of embeddings is the output layer too."""
    return isinstance(model, LanguageModelHead) and model.ties_output


@dataclass(frozen=True)
class Memory:
    """Memory in bytes, in float32 on a CPU, without what Python and PyTorch themselves take."""

    batch: int
    length: int
    weights: int
    forward: int  # peak of the activations in inference
    gradients: int
    optimizer: int
    activations: int  # peak in training, with those kept for the backward pass
    step: int  # peak of activations and gradients, which come while activations go
    inference: int  # estimated growth of a process in inference
    training: int  # estimated growth of a process in training


class LiveBytes(TorchDispatchMode):
    """Adds up, while entered, the bytes of the tensors that operations make and that still exist.

    The tensors in `known`, which exist already, are not counted.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        # Views share the storage of their base: each storage is counted once.
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size).atexit = False

    def _forget(self, size: int) -> None:
        self.now -= size


class ByteMasks(TorchFunctionMode):
    """Computes dropout with a mask of one byte an element, as on a CPU and on CUDA.

    By itself, the meta device would keep a float for each element.
    """

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.dropout:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Attention whose kernel never holds the scores, as PyTorch's on CPUs and all on CUDA.

    By itself, the meta device would take the plain kernel, which keeps them.

    Args:
        plain_if_learned: take the plain kernel where what is added to the scores is learned, as
            PyTorch does on a CPU.
    """

    def __init__(self, *, plain_if_learned: bool = False) -> None:
        super().__init__()
        self._plain_if_learned = plain_if_learned

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            added = (kwargs or {}).get("attn_mask")
            if not (self._plain_if_learned and added is not None and added.requires_grad):
                return _Fused.apply(*args[:3])  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps: its inputs, its output, and a number for each query and head."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Token by token, as FlashAttention writes it.
        mixed = torch.empty(q.transpose(-3, -2).shape, dtype=q.dtype, device=q.device).transpose(
            -3, -2
        )
        logsumexp = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, mixed, logsumexp)
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


def estimate_memory(model: nn.Module, batch: int, length: int) -> Memory:
    """Estimate the memory for inference and for training on a CPU.

    A backbone without a head is measured with the usual head of its family. A masked LM predicts
    15 % of the tokens, a causal LM all of them.

    Args:
        model: a model on the meta device; afterwards in evaluation mode and without gradients.
        batch: sequences at a time.
        length: tokens of each sequence, special tokens included.
    """
    with torch.device("meta"):
        trained = model
        if isinstance(model, Backbone):
            trained = build_head(model, FAMILIES[model.config.model_type].usual_head)
    trained.to("meta")  # a table of sinusoids is always made on the CPU
    # An optimizer may have asked for sparse gradients, which the meta device does not have.
    for module in trained.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
    inputs = batch_of(trained, batch, length)
    weights = FLOAT * sum(p.numel() for p in trained.parameters())
    # Lookup tables get sparse gradients, which take next to nothing.
    tables = _lookup_tables(trained)
    before = [p.requires_grad for p in tables]
    for table in tables:
        table.requires_grad_(False)
    forward = _forward_peak(trained, inputs)
    saved, step = _step_peak(trained, inputs)
    for table, needed in zip(tables, before, strict=True):
        table.requires_grad_(needed)
    optimizer = MOMENTS * weights
    # But the optimizer keeps a table of zeros for each, for the gradients of the rows that were
    # looked up (training/optimizer.py).
    lasting = FLOAT * sum(table.numel() for table in tables)
    return Memory(
        batch=batch,
        length=length,
        weights=weights,
        forward=forward,
        gradients=weights,
        optimizer=optimizer,
        activations=saved,
        step=step,
        inference=weights + round(INFERENCE_SLACK * forward),
        training=weights + optimizer + lasting + round(TRAINING_SLACK * step),
    )


def _lookup_tables(model: nn.Module) -> list[nn.Parameter]:
    """List the embeddings with sparse gradients: those that are not the output layer too."""
    if _tied(companion_of(model) or model):
        return []
    return [m.get_parameter("weight") for m in model.modules() if isinstance(m, nn.Embedding)]


def batch_of(model: nn.Module, batch: int, length: int) -> PackedBatch:
    """Make a batch without values, of pairs if the model reads pairs."""
    ids = torch.zeros(batch * length, dtype=torch.int64, device="meta")
    if backbone_of(model).reads_pairs:
        sides, pairs = [length - length // 2, length // 2], (2,) * batch
        layout = Layout.of(sides * batch, "meta")
        return PackedBatch(tokens=ids, layout=layout, positions=ids, choices=pairs)
    layout = Layout.of([length] * batch, "meta")
    return PackedBatch(tokens=ids, layout=layout, positions=ids, segments=ids)


def known(model: nn.Module, inputs: PackedBatch) -> Iterator[Tensor]:
    """List the tensors that exist before a step, for `LiveBytes`."""
    yield from model.parameters()
    yield from model.buffers()
    yield inputs.tokens


def _forward_peak(model: nn.Module, inputs: PackedBatch) -> int:
    """Return the peak of the activations if nothing is kept for a backward pass."""
    model.eval()
    live = LiveBytes(known(model, inputs))
    with torch.no_grad(), live, FusedAttention(plain_if_learned=True):
        loss_of(model, inputs)
    return live.peak


def _step_peak(model: nn.Module, inputs: PackedBatch) -> tuple[int, int]:
    """Return the peak of the activations up to the loss, and of activations and gradients."""
    model.train()
    live = LiveBytes(known(model, inputs))
    with live, ByteMasks(), FusedAttention(plain_if_learned=True):
        loss = loss_of(model, inputs)
        forward = live.peak
        loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    model.eval()
    return forward, live.peak


def loss_of(model: nn.Module, inputs: PackedBatch, *, scored: bool = False) -> Tensor:
    """Run a model forward, with both heads in pre-training, and sum the losses of its outputs.

    Args:
        model: with a head.
        inputs: a batch without values.
        scored: score tokens chunk by chunk, as training does, so that logits never exist all at
            once.
    """
    companion = companion_of(model)
    if companion is not None:
        return _sum(companion(inputs, select=_masked(inputs))) + _sum(model(inputs))
    if hasattr(model, "relationship"):
        output = model(inputs, select=_masked(inputs), both=True)
        return _sum(output.predictions) + _sum(output.seq_relationship_logits)
    # A CRF scores a label for every token; a trained tagger reads one token of each word.
    if isinstance(model, CrfTagger):
        every = Selection(inputs.tokens, inputs.layout)
        scores: TagScores = model(inputs, select=every, labels=inputs.tokens)
        assert scores.likelihood is not None  # noqa: S101 - as labels were given
        return -scores.likelihood.sum()
    some: dict[str, Any] = {"select": _masked(inputs)} if isinstance(model, MaskedLM) else {}
    if scored and isinstance(model, LanguageModelHead) and not backbone_of(model).reads_pairs:
        select = some.get("select")
        labels = inputs.tokens if select is None else select.rows
        total: Tensor = model(inputs, **some, labels=labels).sum
        return total
    return _sum(model(inputs, **some))


def _sum(logits: Tensor | Detection) -> Tensor:
    if isinstance(logits, Detection):
        logits = logits.logits[:, None]
    targets = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _masked(inputs: PackedBatch) -> Selection:
    """Select as many tokens of each sequence as are masked in training."""
    each = [max(1, round(MASKED * length)) for length in inputs.layout.lengths]
    return Selection(inputs.tokens[: sum(each)], Layout.of(each, "meta"))
