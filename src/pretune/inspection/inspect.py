"""Inspect a model: its modules and costs, and what tokenizer and attention make of a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, Outline
from pretune.checkpoints.sentence_transformers import EmbeddingSettings, embedding_settings
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, DataError, RunError
from pretune.experiments.costs import Flops, Memory, count_flops, estimate_memory
from pretune.models import kernels
from pretune.models.backbone import backbone_of
from pretune.models.products import ONEDNN, PLAIN
from pretune.tokenizers.load import has_tokenizer, load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

#: Tokens of an attention map; in a larger map, a token would be a few pixels.
MAX_DRAWN_TOKENS = 64
#: Length that costs are given for, unless the model has fewer positions.
USUAL_LENGTH = 128


@dataclass(frozen=True)
class ModuleTree:
    """A module and the modules in it; equal neighbours are folded into one."""

    name: str  # attribute name in the parent; `layers 0-11` for several equal modules
    kind: str
    count: int
    parameters: int  # of one of them, its parts included
    shapes: dict[str, tuple[int, ...]]  # of the parameters that it holds itself, by name
    parts: tuple[ModuleTree, ...]


@dataclass(frozen=True)
class SpecialToken:
    """A special token: its names in the Hugging Face files, the token itself, and its id."""

    names: tuple[str, ...]
    token: str
    id: int


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of a tokenizer."""

    size: int  # ids go from 0 to size - 1
    special: tuple[SpecialToken, ...]  # tokens that stand for no text, ordered by id


@dataclass(frozen=True)
class TokenSpan:
    """A token of a text, and the characters that it stands for."""

    piece: str
    id: int
    start: int | None  # index of the first character; None for a special token
    end: int | None  # index after the last character; None for a special token
    text: str


@dataclass(frozen=True)
class Inspection:
    """What a model is made of and what it costs."""

    source: str  # folder of the model, or name of a preset
    family: str
    task: str | None
    positions: int | None  # most tokens of a sequence; None if there is no limit
    parameters: int
    components: dict[str, int]
    tree: ModuleTree
    flops: Flops
    memory: Memory
    vocabulary: Vocabulary | None  # None if the folder has no tokenizer
    embedding: EmbeddingSettings | None  # None if it has no files of sentence-transformers

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; memory in bytes."""
        values = asdict(self)
        values["flops"]["training_per_token"] = self.flops.training_per_token
        return values


def inspect_model(outline: Outline, batch: int = 32, length: int | None = None) -> Inspection:
    """Inspect a model without loading its weights.

    Args:
        outline: the model without weights, from `pretune.bundle.bundle.outline`.
        batch: sequences at a time, for the memory.
        length: tokens of a sequence; default 128, or the positions if fewer. A RunError is raised
            if the model has fewer positions than this.
    """
    model = outline.model
    config = backbone_of(model).config
    positions = None if config.endless else config.size("max_position_embeddings")
    # Costs are given for a usual length, if the model reads that much.
    if length is None:
        length = USUAL_LENGTH if positions is None else min(USUAL_LENGTH, positions)
    if positions is not None and length > positions:
        raise RunError(
            f"--length {length}: the model has {positions} positions", f"Use at most {positions}."
        )
    counts = components(model)
    tokenizer = folder_tokenizer(outline)
    return Inspection(
        source=outline.name,
        family=outline.family.model_type,
        task=None if outline.task is None else outline.task.name,
        positions=positions,
        parameters=sum(counts.values()),
        components=counts,
        tree=module_tree(model),
        flops=count_flops(model, length),
        # After the others, as it leaves the model in another mode.
        memory=estimate_memory(model, batch, length),
        vocabulary=None if tokenizer is None else vocabulary_of(tokenizer),
        embedding=None if outline.folder is None else embedding_settings(outline.folder),
    )


@dataclass(frozen=True)
class KernelTable:
    """The kernels for a model's products on this CPU."""

    processor: str
    threads: int
    # How kernels are chosen: `measured`; `default` where there is no cache; or the forced one.
    mode: str
    timings: dict[kernels.ShapeClass, kernels.Timing]

    def used(self, shape: kernels.ShapeClass) -> str:
        """The kernel that products of a class go to."""
        if self.mode == kernels.MEASURED:
            return self.timings[shape].kernel
        return ONEDNN if self.mode == ONEDNN else PLAIN

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; times in milliseconds."""
        classes = [
            {**shape._asdict(), "ms": timing.ms, "used": self.used(shape)}
            for shape, timing in self.timings.items()
        ]
        how = {"processor": self.processor, "threads": self.threads, "mode": self.mode}
        return {**how, "classes": classes}


def kernel_table(model: nn.Module) -> KernelTable:
    """Time the kernels for all products of a model; what the cache knows is not timed again."""
    shapes = kernels.shapes_of(model)
    return KernelTable(
        processor=kernels.processor(),
        threads=torch.get_num_threads(),
        mode=kernels.mode(),
        timings={shape: kernels.timing(shape) for shape in shapes},
    )


def components(model: nn.Module) -> dict[str, int]:
    """Count the parameters of embeddings, encoder (or decoder), pooler and head."""
    # Whatever is not in the backbone is the head.
    backbone = backbone_of(model)
    layers = "decoder" if backbone.causal else "encoder"
    names = {"layers": layers, "final_norm": "final norm"}
    counts = {names.get(name, name): _count(part) for name, part in backbone.named_children()}
    if model is not backbone:
        counts["head"] = _count(model) - _count(backbone)
    return {name: count for name, count in counts.items() if count}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def module_tree(module: nn.Module, name: str = "") -> ModuleTree:
    """Build the tree of the modules that hold parameters."""
    parts: list[ModuleTree] = []
    for child_name, child in module.named_children():
        # The layers of a stack mostly differ in nothing but their values.
        if isinstance(child, nn.ModuleList):
            parts += _folded(child_name, [module_tree(layer) for layer in child])
        elif _count(child):
            parts.append(module_tree(child, child_name))
    own = module.named_parameters(recurse=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in own}
    return ModuleTree(name, type(module).__name__, 1, _count(module), shapes, tuple(parts))


def _folded(name: str, parts: list[ModuleTree]) -> Iterable[ModuleTree]:
    """Fold neighbours that are equal in all but their values."""
    start = 0
    for _, group in groupby(parts):
        equal = list(group)
        last = start + len(equal) - 1
        number = f"{name} {start}-{last}" if last > start else f"{name} {start}"
        yield replace(equal[0], name=number, count=len(equal))
        start = last + 1


def folder_tokenizer(outline: Outline) -> Tokenizer | None:
    """Load the tokenizer in a model's folder, if any; raises CheckpointError if it is damaged."""
    folder = outline.folder
    if folder is None or not has_tokenizer(folder):
        return None
    return load_tokenizer(folder)


def needed_tokenizer(outline: Outline) -> Tokenizer:
    """Load the tokenizer in a model's folder; raises CheckpointError if none, or if damaged."""
    tokenizer = folder_tokenizer(outline)
    if tokenizer is None:
        raise CheckpointError(
            f"{outline.name}: no tokenizer here, so a text cannot be cut into tokens",
            "Name a folder that has tokenizer.json, vocab.txt, vocab.json and merges.txt, or a "
            "SentencePiece file.",
        )
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Describe the vocabulary of a tokenizer."""
    # A token may have several names, and tokens beyond the named ones may be special too.
    names: dict[int, list[str]] = {}
    for name in tokenizer.special:
        index = tokenizer.special_id(name)
        if index is not None:
            names.setdefault(index, []).append(name)
    for index, token in tokenizer.engine.get_added_tokens_decoder().items():
        if token.special:
            names.setdefault(index, [])
    special = tuple(
        SpecialToken(tuple(names[index]), tokenizer.tokens([index])[0], index)
        for index in sorted(names)
    )
    return Vocabulary(tokenizer.vocab_size, special)


def token_spans(tokenizer: Tokenizer, text: str) -> list[TokenSpan]:
    """Tokenize a text of any length, special tokens included."""
    (encoded,) = tokenizer.encode([text])
    pieces = tokenizer.tokens(encoded.ids)
    spans = []
    for piece, index, (start, end) in zip(pieces, encoded.ids, encoded.offsets, strict=True):
        # Special tokens stand for no text.
        if start == end:
            spans.append(TokenSpan(piece, index, None, None, ""))
        else:
            spans.append(TokenSpan(piece, index, start, end, text[start:end]))
    return spans


def attention_of(bundle: Bundle, text: str) -> tuple[list[str], Tensor]:
    """Return the T tokens of a text, and `[layers, heads, T, T]` attention: row i sums to 1.

    Raises:
        DataError: the text has no tokens, or too many for a picture or for the model.
    """
    (encoded,) = bundle.tokenizer.encode([text])
    count = len(encoded.ids)
    longest = min(MAX_DRAWN_TOKENS, bundle.backbone.config.size("max_position_embeddings"))
    if not 0 < count <= longest:
        raise DataError(
            f"--attention: the text has {count} tokens, a map can be drawn of 1 to {longest}",
            "Give a sentence." if count else "Give some text.",
        )
    # The backbone gives a list of [heads, T, T] for each layer, with an entry for each sequence.
    backbone = bundle.backbone.eval()
    batch = PackedBatch.of([encoded.ids], [encoded.segments])
    with torch.inference_mode():
        maps = backbone(batch, output_attentions=True).attentions
    return bundle.tokenizer.tokens(encoded.ids), torch.stack([layer[0] for layer in maps])


def chosen(what: str, number: int | None, count: int) -> list[int]:
    """Return the layers (or heads: `what`) to draw, all `count` of them if `number` is None."""
    if number is None:
        return list(range(count))
    if not 0 <= number < count:
        raise RunError(f"--{what} {number}: the model has {what}s 0 to {count - 1}")
    return [number]
