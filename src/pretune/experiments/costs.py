"""What a model costs: floating-point operations and memory, before a weight is loaded.

Memory is not a formula here. The model runs forward and backward on PyTorch's meta device, where
tensors have shapes and lifetimes but no values, and `LiveBytes` adds up which of them exist at a
time: everything autograd keeps, every temporary, at the very batch and length that were asked for.
What a process takes is more, as the allocator leaves holes: the one factor that was measured.
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

from pretune.data.batch import Layout, PackedBatch, Selection
from pretune.models.backbone import Backbone
from pretune.models.families import FAMILIES, build_head
from pretune.models.heads.language import LanguageModelHead, MaskedLM
from pretune.models.heads.token import TokenClassifier

#: Bytes of a float32.
FLOAT = 4
#: AdamW keeps a mean of the gradient and a mean of its square for each parameter.
MOMENTS = 2
#: What a process takes for each byte of activations and gradients that exists at a time: glibc's
#: allocator leaves holes. Measured, not derived (glibc 2.36; MiniLM and BERT-base, batches of 2,048
#: to 4,096 tokens): 1.42 to 1.45 in training, 1.61 to 1.78 in inference.
TRAINING_SLACK, INFERENCE_SLACK = 1.45, 1.7
#: The share of tokens whose prediction a masked-LM training asks for (BERT, section 3.1).
MASKED = 0.15


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of the forward pass, a multiplication and an addition being two.

    Attributes:
        length: tokens of the sequence.
        matrix_parameters: weights of the matrices that every token goes through. A table of
            embeddings is not one (looking a row up computes nothing), unless it is the output
            layer too.
        attention: of one token, for comparing its query with all keys and mixing all values.
        per_token: of one token, all of it.
        per_sequence: of all tokens, and of what runs once a sequence (pooler, classifier).
    """

    length: int
    matrix_parameters: int
    attention: int
    per_token: int
    per_sequence: int

    @property
    def training_per_token(self) -> int:
        """Forward and backward: the backward pass computes two products for each one."""
        return 3 * self.per_token


def count_flops(model: nn.Module, length: int) -> Flops:
    """The operations of a forward pass over a sequence, every token in every layer.

        per token = 2 x matrix parameters + 4 x length x hidden x layers

    The first term is one multiplication and one addition a weight; the second is the two products
    of attention, `Q K^T` and weights times `V`, 2 x length x hidden each (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1; Chowdhery et al. 2022, arXiv:2204.02311, appendix B, whose
    6 N + 12 L H Q T a token is this, forward and backward). Biases, activations, LayerNorm and
    softmax are left out, as there. A causal model is counted with the half of attention that its
    mask throws away: it is computed all the same.

    Of a pair of a source and a target, half of the tokens are on each side: each goes through the
    matrices of its own stack.

    Args:
        model: a backbone or a model with a head, on any device.
        length: tokens of a sequence, or of a pair.
    """
    backbone = backbone_of(model)
    config = backbone.config
    each_token, each_sequence = 0, 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if _once_a_sequence(model, name):
            each_sequence += module.weight.numel()
        else:
            each_token += module.weight.numel()
    if _tied(model):
        each_token += config.size("vocab_size") * config.size("hidden_size")
    layers = float(config.size("num_hidden_layers") if backbone.has_attention else 0)
    if backbone.reads_pairs:
        # A token of a target looks at its source as well, in each layer; half the tokens are such.
        layers = (layers + backbone.stacks[1]) / 4
        each_token //= 2
    attention = round(4 * length * config.size("hidden_size") * layers)
    per_token = 2 * each_token + attention
    whole = length * per_token + 2 * each_sequence
    return Flops(length, each_token, attention, per_token, whole)


def _once_a_sequence(model: nn.Module, name: str) -> bool:
    """Whether a matrix is applied to one vector a sequence rather than to every token's."""
    if name.rpartition(".")[2] in ("pooler", "relationship"):
        return True
    kinds = Backbone | TokenClassifier | LanguageModelHead
    return not isinstance(model, kinds) and not name.startswith("backbone.")


def _tied(model: nn.Module) -> bool:
    """Whether the table of embeddings is the output layer too."""
    return isinstance(model, LanguageModelHead) and model.ties_output


def backbone_of(model: nn.Module) -> Backbone:
    """The model without its head."""
    backbone = model if isinstance(model, Backbone) else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    return backbone


@dataclass(frozen=True)
class Memory:
    """Bytes of float32 on a CPU, besides what Python and PyTorch take for themselves.

    Attributes:
        batch: sequences at a time.
        length: tokens of each.
        weights: the parameters.
        forward: the most that activations take at a time when nothing is trained.
        gradients: of all parameters.
        optimizer: AdamW's two moments.
        activations: the most that activations take at a time in training, those kept for the
            backward pass included.
        step: the most that activations and gradients take at a time; less than their sum, as
            gradients come while activations go.
        inference: about what a process grows by when nothing is trained.
        training: about what a process grows by in training.
    """

    batch: int
    length: int
    weights: int
    forward: int
    gradients: int
    optimizer: int
    activations: int
    step: int
    inference: int
    training: int


class LiveBytes(TorchDispatchMode):
    """While entered, adds up the bytes of all tensors that operations make and that still exist.

    Args:
        known: tensors that are there already and are not to be counted.

    Attributes:
        now: bytes at present.
        peak: the most there were.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation and look at what came out."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        """Views share the storage of what they look at: each is counted once."""
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size).atexit = False

    def _forget(self, size: int) -> None:
        self.now -= size


class _MasksOfBytes(TorchFunctionMode):
    """Dropout with a mask of one byte an element, as it is on a CPU here and on CUDA.

    Left to itself the meta device keeps a float for each.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one function."""
        if func is F.dropout:
            return torch.native_dropout(args[0], kwargs["p"], True)[0]
        return func(*args, **(kwargs or {}))


def estimate_memory(model: nn.Module, batch: int, length: int) -> Memory:
    """What evaluating and what training take on a CPU.

    A backbone without a head is trained with a classifier of two labels on top, one that has no
    classifier as a causal LM. A masked LM predicts 15 % of the tokens, a causal LM all of them.

    Args:
        model: on the meta device; afterwards in evaluation mode and without gradients.
        batch: sequences at a time.
        length: tokens of each, special tokens included.
    """
    with torch.device("meta"):
        trained = model
        if isinstance(model, Backbone):
            trained = build_head(model, FAMILIES[model.config.model_type].usual_head)
    trained.to("meta")  # a table of sinusoids is always made on the CPU
    for module in trained.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False  # an optimizer may have asked for it; the meta device has none
    inputs = _inputs(trained, batch, length)
    weights = FLOAT * sum(p.numel() for p in trained.parameters())
    tables = _lookup_tables(trained)
    before = [p.requires_grad for p in tables]
    for table in tables:
        table.requires_grad_(False)
    forward = _forward_peak(trained, inputs)
    saved, step = _step_peak(trained, inputs)
    for table, needed in zip(tables, before, strict=True):
        table.requires_grad_(needed)
    optimizer = MOMENTS * weights
    # The optimizer keeps a table of zeros for each lookup table, into which it lays the gradient
    # of the rows that were looked up (training/optim.py).
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
    """Embeddings that get their gradients as rows: those that are no output layer."""
    if _tied(model):
        return []
    return [m.get_parameter("weight") for m in model.modules() if isinstance(m, nn.Embedding)]


def _inputs(model: nn.Module, batch: int, length: int) -> PackedBatch:
    ids = torch.zeros(batch * length, dtype=torch.int64, device="meta")
    if backbone_of(model).reads_pairs:
        sides, pairs = [length - length // 2, length // 2], (2,) * batch
        layout = Layout.of(sides * batch, "meta")
        return PackedBatch(tokens=ids, layout=layout, positions=ids, choices=pairs)
    layout = Layout.of([length] * batch, "meta")
    return PackedBatch(tokens=ids, layout=layout, positions=ids, segments=ids)


def _known(model: nn.Module, inputs: PackedBatch) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    yield inputs.tokens


def _forward_peak(model: nn.Module, inputs: PackedBatch) -> int:
    """The most bytes of activations when nothing is kept for a backward pass."""
    model.eval()
    live = LiveBytes(_known(model, inputs))
    with torch.no_grad(), live:
        _loss(model, inputs)
    return live.peak


def _step_peak(model: nn.Module, inputs: PackedBatch) -> tuple[int, int]:
    """The most bytes of activations up to the loss, and of activations and gradients together."""
    model.train()
    live = LiveBytes(_known(model, inputs))
    with live, _MasksOfBytes():
        loss = _loss(model, inputs)
        forward = live.peak
        loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    model.eval()
    return forward, live.peak


def _loss(model: nn.Module, inputs: PackedBatch) -> Tensor:
    if hasattr(model, "relationship"):
        found = model(inputs, select=_masked(inputs), both=True)
        return _sum(found.predictions) + _sum(found.seq_relationship_logits)
    some = {"select": _masked(inputs)} if isinstance(model, MaskedLM) else {}
    return _sum(model(inputs, **some))


def _sum(logits: Tensor) -> Tensor:
    targets = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def _masked(inputs: PackedBatch) -> Selection:
    each = [max(1, round(MASKED * length)) for length in inputs.layout.lengths]
    return Selection(inputs.tokens[: sum(each)], Layout.of(each, "meta"))
