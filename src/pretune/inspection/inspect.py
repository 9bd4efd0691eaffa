"""What a model is made of, what it costs, and what its tokenizer and its attention do to a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, Outline
from pretune.data.batch import PackedBatch
from pretune.errors import CheckpointError, DataError, RunError
from pretune.experiments.costs import Flops, Memory, backbone_of, count_flops, estimate_memory
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

#: Maps of longer texts cannot be read: a token would be a few pixels.
MAX_DRAWN_TOKENS = 64
#: One of these is in a folder with a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "merges.txt")
#: The length that costs are given for, unless the model has fewer positions.
USUAL_LENGTH = 128


@dataclass(frozen=True)
class ModuleTree:
    """A module of the tree, or several that are alike in all but their values.

    Attributes:
        name: as its parent calls it; of several `layers 0-11`.
        kind: its class.
        count: how many are alike.
        parameters: of one of them, its own parts included.
        shapes: of the parameters it holds itself.
        parts: what it is made of.
    """

    name: str
    kind: str
    count: int
    parameters: int
    shapes: dict[str, tuple[int, ...]]
    parts: tuple[ModuleTree, ...]


@dataclass(frozen=True)
class SpecialToken:
    """A special token: its names in the Hugging Face files, the token itself, its id."""

    names: tuple[str, ...]
    token: str
    id: int


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer knows.

    Attributes:
        size: it gives ids from 0 to size - 1.
        special: tokens that stand for no text, by their ids.
    """

    size: int
    special: tuple[SpecialToken, ...]


@dataclass(frozen=True)
class TokenSpan:
    """A token of a text: its id, and from which character to which it stands for.

    Attributes:
        piece: as the vocabulary has it.
        id: its number.
        start: first character; None for special tokens, which stand for none.
        end: the character after the last one.
        text: those characters.
    """

    piece: str
    id: int
    start: int | None
    end: int | None
    text: str


@dataclass(frozen=True)
class Inspection:
    """All of it.

    Attributes:
        source: the folder, or the name of a size.
        family: as `config.json` names it.
        task: what the model was trained for, if anything.
        positions: the most tokens of a sequence; None where there is no such limit.
        parameters: of the whole model.
        components: how many of them are in which component.
        tree: the modules.
        flops: of the forward pass.
        memory: for inference and training.
        vocabulary: None where the folder has no tokenizer.
    """

    source: str
    family: str
    task: str | None
    positions: int | None
    parameters: int
    components: dict[str, int]
    tree: ModuleTree
    flops: Flops
    memory: Memory
    vocabulary: Vocabulary | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; memory in bytes."""
        found = asdict(self)
        found["flops"]["training_per_token"] = self.flops.training_per_token
        return found


def inspect_model(outline: Outline, batch: int = 32, length: int | None = None) -> Inspection:
    """Look at a model without loading its weights.

    Args:
        outline: from `pretune.bundle.bundle.outline`.
        batch: sequences at a time, for the memory.
        length: tokens of each, for memory and FLOPs; default 128, or all positions if fewer.

    Raises:
        RunError: the model has fewer positions than `length`.
        CheckpointError: the tokenizer is damaged.
    """
    model = outline.model
    config = backbone_of(model).config
    positions = None if config.endless else config.size("max_position_embeddings")
    if length is None:
        length = USUAL_LENGTH if positions is None else min(USUAL_LENGTH, positions)
    if positions is not None and length > positions:
        raise RunError(
            f"--length {length}: the model has {positions} positions", f"Use at most {positions}."
        )
    found = components(model)
    tokenizer = folder_tokenizer(outline)
    return Inspection(
        source=outline.name,
        family=outline.family.model_type,
        task=None if outline.task is None else outline.task.name,
        positions=positions,
        parameters=sum(found.values()),
        components=found,
        tree=module_tree(model),
        flops=count_flops(model, length),
        # Last, as it leaves the model in another mode.
        memory=estimate_memory(model, batch, length),
        vocabulary=None if tokenizer is None else vocabulary_of(tokenizer),
    )


def components(model: nn.Module) -> dict[str, int]:
    """Parameters of embeddings, encoder (or decoder), pooler and head; they add up to all."""
    backbone = backbone_of(model)
    layers = "decoder" if backbone.causal else "encoder"
    names = {"layers": layers, "final_norm": "final norm"}
    found = {names.get(name, name): _count(part) for name, part in backbone.named_children()}
    if model is not backbone:
        found["head"] = _count(model) - _count(backbone)
    return {name: count for name, count in found.items() if count}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def module_tree(module: nn.Module, name: str = "") -> ModuleTree:
    """The tree of modules that hold parameters, neighbours that are alike folded into one."""
    parts: list[ModuleTree] = []
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            parts += _folded(child_name, [module_tree(one) for one in child])
        elif _count(child):
            parts.append(module_tree(child, child_name))
    own = module.named_parameters(recurse=False)
    shapes = {name: tuple(parameter.shape) for name, parameter in own}
    return ModuleTree(name, type(module).__name__, 1, _count(module), shapes, tuple(parts))


def _folded(name: str, parts: list[ModuleTree]) -> Iterable[ModuleTree]:
    start = 0
    for _, group in groupby(parts):
        alike = list(group)
        last = start + len(alike) - 1
        number = f"{name} {start}-{last}" if last > start else f"{name} {start}"
        yield replace(alike[0], name=number, count=len(alike))
        start = last + 1


def folder_tokenizer(outline: Outline) -> Tokenizer | None:
    """The tokenizer in a model's folder, or None where there is none.

    Raises:
        CheckpointError: there is one, but damaged.
    """
    folder = outline.folder
    if folder is None or not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return load_tokenizer(folder)


def needed_tokenizer(outline: Outline) -> Tokenizer:
    """The tokenizer in a model's folder.

    Raises:
        CheckpointError: none there, or damaged.
    """
    tokenizer = folder_tokenizer(outline)
    if tokenizer is None:
        raise CheckpointError(
            f"{outline.name}: no tokenizer here, so a text cannot be cut into tokens",
            "Name a folder that has tokenizer.json, vocab.txt, or vocab.json and merges.txt.",
        )
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Size and special tokens, by their ids."""
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
    """What the tokenizer makes of a text, special tokens included, however long it is."""
    (encoded,) = tokenizer.encode([text])
    pieces = tokenizer.tokens(encoded.ids)
    found = []
    for piece, index, (start, end) in zip(pieces, encoded.ids, encoded.offsets, strict=True):
        if start == end:
            found.append(TokenSpan(piece, index, None, None, ""))
        else:
            found.append(TokenSpan(piece, index, start, end, text[start:end]))
    return found


def attention_of(bundle: Bundle, text: str) -> tuple[list[str], Tensor]:
    """The attention maps of a text.

    Args:
        bundle: with its weights.
        text: at most 64 tokens.

    Returns:
        the T tokens, and `[layers, heads, T, T]`: row i is how token i looks at all of them, and
        sums to 1.

    Raises:
        DataError: the text has no tokens, or too many to draw or for the model.
    """
    (encoded,) = bundle.tokenizer.encode([text])
    count = len(encoded.ids)
    most = min(MAX_DRAWN_TOKENS, bundle.backbone.config.size("max_position_embeddings"))
    if not 0 < count <= most:
        raise DataError(
            f"--attention: the text has {count} tokens, a map can be drawn of 1 to {most}",
            "Give a sentence." if count else "Give some text.",
        )
    backbone = bundle.backbone.eval()
    batch = PackedBatch.of([encoded.ids], [encoded.segments])
    with torch.inference_mode():
        maps = backbone(batch, output_attentions=True).attentions
    return bundle.tokenizer.tokens(encoded.ids), torch.stack([layer[0] for layer in maps])


def chosen(what: str, number: int | None, count: int) -> list[int]:
    """The layers or heads to draw: the one that was asked for, or all.

    Raises:
        RunError: there is no such one.
    """
    if number is None:
        return list(range(count))
    if not 0 <= number < count:
        raise RunError(f"--{what} {number}: the model has {what}s 0 to {count - 1}")
    return [number]
