"""Loading weights in the Hugging Face layout, with a report on every tensor."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretune.checkpoints.config import config_file, family_of, in_file
from pretune.checkpoints.int8_weights import Int8Safetensors
from pretune.checkpoints.names import (
    PublishedNames,
    expand,
    ignored_names,
    layer_fronts,
    name_table,
    names_of_heads,
    rows_of_parts,
    second_names,
)
from pretune.checkpoints.weights import (
    WeightSource,
    common_dtype,
    drop_wrappers,
    type_name,
    use_prefix,
)
from pretune.errors import CheckpointError, note
from pretune.models.backbone import Backbone
from pretune.models.family import Family
from pretune.models.layers import Embedding, Linear
from pretune.models.pruned import remove_heads


@dataclass(frozen=True)
class LoadReport:
    """What was loaded, and what was not."""

    source: str  # the folder
    loaded: int  # number of tensors in the file that went into the model
    #: Our names of parameters that the file lacks and that got fresh weights.
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()  # names in the file that have no place in this model
    converted: int = 0  # number of tensors that were converted to the model's type
    dtype: str = "float32"  # the type of the model
    random: bool = False  # whether no weights were loaded: all were initialised at random
    #: Those of `unexpected` that no model of the family has; a note has named them.
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.random:
            return f"initialised {self.source}; no weights were loaded"
        parts = [f"loaded {self.loaded} tensors from {self.source}"]
        if self.converted:
            parts.append(f"{self.converted} of them converted to {self.dtype}")
        if self.missing:
            parts.append(f"new, not in the file: {_some(self.missing)}")
        if other := tuple(name for name in self.unexpected if name not in self.unknown):
            parts.append(f"in the file, not used: {_some(other)}")
        return "; ".join(parts)


def _some(names: tuple[str, ...], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True)
class Fit:
    """How the tensors of a file fit a model."""

    plan: dict[str, PublishedNames]  # our name -> where it is in the file
    missing: tuple[str, ...]  # our names that the file lacks
    unused: set[str]  # names of the file, as in its source, that have no place in the model


def fit_weights(
    model: nn.Module,
    weights: WeightSource,
    folder: Path,
    family: Family,
    head: str,
    *,
    fresh: AbstractSet[str] = frozenset(),
) -> Fit:
    """Match the tensors of a file with a model, by names and shapes; no values are read.

    Args:
        model: which may be on the meta device.
        weights: whose names become the published ones.
        folder: the source of the weights, for errors.
        family: gives the names.
        head: which of the family's heads the model has.
        fresh: our names of parameters that are not taken from the file even if it has them.

    Raises:
        CheckpointError: another number of layers, a tensor of another shape, or a missing part of
            the backbone; names the file and the tensor.
    """
    backbone = model if head == "backbone" else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    table, stacks = name_table(family, head, backbone.stacks), backbone.stacks
    # One spelling of the names: without wrappers, and with the family's prefix or without.
    body = _body(family, stacks)
    _use_one_prefix(weights, family)
    drop_wrappers(weights, body | {family.prefix + part for part in body})
    without = names_of_heads(family)
    use_prefix(weights, family.prefix, wanted=head != "backbone", without=without)
    _use_first_names(weights, family, table)
    _refuse_other_depth(weights, family, backbone, folder)
    plan, missing = _match(model, weights, {k: v for k, v in table.items() if k not in fresh})
    _refuse_missing(missing, weights, table, family, head, folder)
    _refuse_second_positions(weights, family, backbone, folder)
    # What the file has and the model does not; and what no model of the family has.
    used = {part for names in plan.values() for part in names.parts}
    return Fit(plan, tuple(missing), weights.names - used - ignored_names(family, head, stacks))


def _unknown(fit: Fit, family: Family, stacks: tuple[int, ...]) -> set[str]:
    """The unused names that no model of the family has, with whichever head."""
    body = _body(family, stacks)
    heads = names_of_heads(family)
    return {
        name
        for name in fit.unused - heads - body - {family.prefix + part for part in body}
        if name.partition(".")[0] not in family.other_heads
    }


def _placeless(fit: Fit, family: Family, stacks: tuple[int, ...]) -> set[str]:
    """The unused names of backbones that are not of the one that `config.json` describes.

    Without those that heads do without, such as a pooler's.
    """
    optional = tuple(f"{name}." for name in family.optional)
    body = {
        part
        for ours, names in expand(family.rules, stacks).items()
        if not ours.startswith(optional)
        for part in names.parts
    }
    return {name for name in fit.unused if name.removeprefix(family.prefix) in body}


def _body(family: Family, stacks: tuple[int, ...]) -> set[str]:
    """The published names of a whole backbone, without the family's prefix."""
    return {part for names in expand(family.rules, stacks).values() for part in names.parts}


def load_into(
    build: Callable[[], nn.Module],
    weights: WeightSource,
    folder: Path,
    family: Family,
    head: str,
    *,
    fresh: AbstractSet[str] = frozenset(),
    dtype: torch.dtype | None = torch.float32,
) -> tuple[nn.Module, LoadReport]:
    """Build a model and fill it with a checkpoint's weights.

    Shapes are compared with the file's header before anything is allocated. Missing parameters of
    the head, and those that the family lists as optional, get fresh weights. A note names tensors
    that no model of the family has.

    Args:
        build: makes the model; called on the meta device, where it needs no memory.
        weights: to fill it with.
        folder: the source of the weights, for errors.
        family: gives the names.
        head: which of the family's heads the model has.
        fresh: our names of parameters to initialise even if the file has them.
        dtype: the type of the model. None: the narrowest type that holds all values of the file,
            which is the file's own type if it has only one.

    Raises:
        CheckpointError: a damaged file, a tensor of another shape, more or fewer layers than
            `config.json` says, a missing part of the backbone, a separate output layer where ours
            is tied, or a weight that is not finite; names the file and the tensor.
    """
    # Match names and shapes, on a model without memory.
    with torch.device("meta"):
        model = build()
    backbone = model if head == "backbone" else model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
    fit = fit_weights(model, weights, folder, family, head, fresh=fresh)
    if not fresh or family.heads[head].keeps_output:
        table = name_table(family, head, backbone.stacks)
        _refuse_untied(weights, second_names(family.heads[head], table))
    model.to(dtype := dtype or _dtype_of(weights, fit.plan))
    # Fresh weights first: the file may hold one half of a module, which must not be overwritten.
    _initialise_missing(model, backbone, fit.missing)
    state = {ours: _tensor(weights, names, dtype) for ours, names in fit.plan.items()}
    model.load_state_dict(state, strict=False, assign=True)
    hollow = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if hollow:  # a bug: a parameter that no rule names
        raise RuntimeError(f"left without values: {_some(tuple(hollow))}")
    if isinstance(weights, Int8Safetensors):
        _mark_int8(model, weights, fit.plan)
    try:
        remove_heads(backbone, backbone.config.removed_heads, zeros=True)
    except CheckpointError as error:
        raise in_file(error, config_file(folder)) from None
    # Report what the file has and the model does not.
    unknown = tuple(sorted(weights.stored(name) for name in _unknown(fit, family, backbone.stacks)))
    if unknown:
        note(
            f"{folder}: in the file, but in no {family.model_type} model, and left out: "
            f"{_some(unknown, 3)}"
        )
    if placeless := sorted(map(weights.stored, _placeless(fit, family, backbone.stacks))):
        note(
            f"{folder}: in the file, but not in the model that config.json describes, and left "
            f"out: {_some(tuple(placeless), 3)}"
        )
    return model, LoadReport(
        source=str(folder),
        loaded=len({part for names in fit.plan.values() for part in names.parts}),
        missing=fit.missing,
        unexpected=tuple(sorted(weights.stored(name) for name in fit.unused)),
        converted=weights.converted,
        dtype=type_name(dtype),
        unknown=unknown,
    )


def _use_one_prefix(weights: WeightSource, family: Family) -> None:
    """Rename the backbone of a file whose head gives it another prefix than the family's."""
    for prefix in {layout.prefix for layout in family.heads.values() if layout.prefix}:
        own = {name for name in weights.names if name.startswith(prefix)}
        if own and not any(name.startswith(family.prefix) for name in weights.names):
            weights.rename({name: family.prefix + name.removeprefix(prefix) for name in own})


def settled(config: dict[str, Any], folder: Path, weights: WeightSource) -> dict[str, Any]:
    """Correct what `config.json` says by what the file has; see `Family.settled`."""

    def differ(first: str, second: str) -> bool:
        return {first, second} <= weights.names and not weights.same(first, second)

    correct = family_of(config, folder).settled
    return config if correct is None else correct(config, differ)


def _use_first_names(
    weights: WeightSource, family: Family, table: dict[str, PublishedNames]
) -> None:
    """Rename tensors that are in the file only under their second name."""
    for head in family.heads.values():
        for second, first in second_names(head, table).items():
            if second in weights.names and first not in weights.names:
                weights.rename({second: first})


def _refuse_untied(weights: WeightSource, names: dict[str, str]) -> None:
    for second, first in names.items():
        if {first, second} <= weights.names and not weights.same(first, second):
            raise CheckpointError(
                f"{weights.file_of(second)}: '{weights.stored(second)}' has other values than "
                f"'{weights.stored(first)}': an output layer of its own "
                "(tie_word_embeddings: false)",
                "Here the output layer is always the table of embeddings, with one bias. The "
                "model can be used for another task, or bare (pretune.load(SOURCE, bare=True)).",
            )


def _match(
    model: nn.Module, weights: WeightSource, table: dict[str, PublishedNames]
) -> tuple[dict[str, PublishedNames], list[str]]:
    """Pair our tensors with those of the file; also our names that have no counterpart."""
    plan: dict[str, PublishedNames] = {}
    missing = []
    for ours, tensor in model.state_dict().items():
        # Without all its parts in the file, a tensor is missing.
        names = table.get(ours)
        if names is None or not weights.names.issuperset(names.parts):
            missing.append(ours)
            continue
        rows = rows_of_parts(model, ours, tensor.shape[0], names)
        for name, own in zip(names.parts, rows, strict=True):
            wanted = [own, *tensor.shape[1:]]
            if names.transposed:
                wanted.reverse()
            if weights.shape(name) != wanted:
                raise CheckpointError(
                    f"{weights.file_of(name)}: '{weights.stored(name)}' is {weights.shape(name)}, "
                    f"but config.json makes it {wanted}",
                    "The weights and config.json are not of the same model.",
                )
        plan[ours] = names
    return plan, missing


def _dtype_of(weights: WeightSource, plan: dict[str, PublishedNames]) -> torch.dtype:
    """The narrowest type for a model that holds all values of the file."""
    stored = (weights.dtype(name) for names in plan.values() for name in names.parts)
    return common_dtype(dtype or torch.float32 for dtype in stored)


def _tensor(weights: WeightSource, names: PublishedNames, dtype: torch.dtype) -> Tensor:
    """Read one of our tensors, concatenated from its parts in the file."""
    if len(names.parts) == 1 and not names.transposed:
        return weights.read(names.parts[0], dtype)
    shapes = [weights.shape(name)[:: -1 if names.transposed else 1] for name in names.parts]
    rows = [shape[0] for shape in shapes]
    whole = torch.empty(sum(rows), *shapes[0][1:], dtype=dtype)
    for name, part in zip(names.parts, torch.split(whole, rows), strict=True):
        weights.read_into(name, part.t() if names.transposed else part)
    return whole


def _refuse_other_depth(
    weights: WeightSource, family: Family, backbone: Backbone, folder: Path
) -> None:
    """Refuse a file with more layers than `config.json` says, or fewer."""
    # The layers of each stack that the file has, by the numbers in its names.
    layers: list[dict[int, str]] = [{} for _ in backbone.stacks]
    fronts = layer_fronts(family)
    for name in sorted(weights.names):
        plain = name.removeprefix(family.prefix)
        for front, stack in fronts.items():
            number = plain.removeprefix(front).partition(".")[0]
            if plain.startswith(front) and number.isdecimal() and len(number) < 5:
                layers[stack].setdefault(int(number), name)
    config = config_file(folder)
    for entry, wanted, own in zip(
        backbone.config.layer_entries(), backbone.stacks, layers, strict=True
    ):
        # Without any, it is another model: the names that are missing say so.
        count = max(own, default=-1) + 1
        if count in (0, wanted):
            continue
        file, last = weights.file_of(own[count - 1]), weights.stored(own[count - 1])
        lost = f"from layer {wanted} on, it would be left out"
        if count < wanted:
            lost = f"the weights lack the layers from {count} on"
        raise CheckpointError(
            f"{file}: has {count} layers (the last: '{last}'), but {config.name} makes it {wanted} "
            f"({entry}): {lost}",
            f"If the file is whole, set {entry} to {count} in {config}; else copy both again. A "
            "model that is to have fewer layers needs a file without the others.",
        )


def _refuse_second_positions(
    weights: WeightSource, family: Family, backbone: Backbone, folder: Path
) -> None:
    """Refuse a file with a table of positions that `config.json` says are computed."""
    table = expand(family.rules, backbone.stacks).get("embeddings.positions.weight")
    computed = "embeddings.sinusoids" in dict(backbone.named_buffers())
    for name in table.parts if computed and table is not None else ():
        for own in {name, family.prefix + name} & weights.names:
            raise CheckpointError(
                f"{weights.file_of(own)}: has a table of positions ('{weights.stored(own)}'), but "
                "config.json makes sinusoids of them (position_embedding_type)",
                f"If it is a {family.model_type} as published, set position_embedding_type to "
                f"absolute in {config_file(folder)}.",
            )


def _refuse_missing(
    missing: list[str],
    weights: WeightSource,
    table: dict[str, PublishedNames],
    family: Family,
    head: str,
    folder: Path,
) -> None:
    """Refuse a file without some part of the backbone; the error has the file's own names."""
    start = "" if head == "backbone" else "backbone."
    optional = tuple(start + name for name in family.optional)
    reader = family.heads[head].pooled
    if reader and f"{reader}.weight" not in missing:  # a trained head needs its trained pooler
        optional = ()
    needed = [name for name in missing if name.startswith(start) and not name.startswith(optional)]
    lost = [p for name in needed for p in table[name].parts if p not in weights.names]
    if not lost:
        return
    # The same tensors may be there, inside another module.
    first = lost[0].removeprefix(family.prefix)
    inside = next((n for n in sorted(weights.names) if n.endswith(f".{first}")), None)
    raise CheckpointError(
        f"{folder}: the weights lack {len(lost)} tensors of the {family.model_type} model: "
        f"{_some(tuple(weights.spelled(name) for name in lost))}",
        "The file is of another model, or incomplete: copy it again."
        if inside is None
        else f"The file has '{weights.stored(inside)}': save the inner model by itself, or rename "
        "its tensors.",
    )


def _mark_int8(model: nn.Module, weights: Int8Safetensors, plan: dict[str, PublishedNames]) -> None:
    """Tell the layers whose weights are stored in 8 bits that they are multiplied so."""
    for ours, names in plan.items():
        part = model.get_submodule(ours.rpartition(".")[0])
        if isinstance(part, Linear | Embedding) and all(map(weights.is_int8, names.parts)):
            part.int8 = True


def _initialise_missing(model: nn.Module, backbone: Backbone, missing: tuple[str, ...]) -> None:
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in missing):
        part = model.get_submodule(owner)
        part.to_empty(device="cpu", recurse=False)
        backbone.init_weights(part)
