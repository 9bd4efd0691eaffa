"""Loading weights in the Hugging Face layout, with a full account of what was and was not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretune.errors import CheckpointError, did_you_mean
from pretune.hub.keys import FAMILIES, Family, Names, ignored_names, name_table
from pretune.hub.tensorflow import TensorFlowCheckpoint, find_tensorflow, read_bert_config
from pretune.hub.weights import WeightSource, use_prefix


@dataclass(frozen=True)
class LoadReport:
    """What happened to every name.

    Attributes:
        source: the folder.
        loaded: how many tensors of the file went into the model.
        missing: our names that the file lacks, freshly initialised instead.
        unexpected: names in the file that this model has no place for.
        converted: how many tensors were not float32 and were converted.
    """

    source: str
    loaded: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    converted: int = 0

    def __str__(self) -> str:
        parts = [f"loaded {self.loaded} tensors from {self.source}"]
        if self.converted:
            parts.append(f"{self.converted} of them converted to float32")
        if self.missing:
            parts.append(f"new, not in the file: {_some(self.missing)}")
        if self.unexpected:
            parts.append(f"in the file, not used: {_some(self.unexpected)}")
        return "; ".join(parts)


def _some(names: tuple[str, ...], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`, or what Google's `bert_config.json` says in its words.

    Raises:
        CheckpointError: missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "bert_config.json").is_file():
        return _google_config(folder)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no config.json here", "Is it a model folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "Copy the file again.")
    return values


def family_of(config: Mapping[str, Any], folder: Path) -> Family:
    """The family that a `config.json` names.

    Raises:
        CheckpointError: an unknown one; gives the nearest.
    """
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type '{kind}' is not supported",
            did_you_mean(kind, FAMILIES),
        )
    return FAMILIES[kind]


def _google_config(folder: Path) -> dict[str, Any]:
    config = read_bert_config(folder)
    prefix = find_tensorflow(folder)
    names = TensorFlowCheckpoint(prefix).names if prefix is not None else set()
    if "cls.predictions.bias" in names:
        both = "cls.seq_relationship.weight" in names
        config.setdefault("architectures", ["BertForPreTraining" if both else "BertForMaskedLM"])
    return config


def load_into(
    build: Callable[[], nn.Module],
    weights: WeightSource,
    folder: Path,
    family: Family,
    head: str,
    initialise: Callable[[nn.Module, nn.Module], None],
    *,
    fresh: AbstractSet[str] = frozenset(),
) -> tuple[nn.Module, LoadReport]:
    """Build a model and fill it from `model.safetensors` (or the shards its index names).

    Shapes are compared with the file's header before a byte is allocated.

    Args:
        build: makes the model (called on the meta device: it costs no memory).
        weights: what to fill it with.
        folder: where they came from, for errors.
        family: gives the names.
        head: which of the family's heads the model has.
        initialise: `(model, part)`: gives fresh weights to a part that the file lacks.
        fresh: our names to initialise even if the file has them.

    Raises:
        CheckpointError: missing or damaged file, a tensor of another shape, part of the backbone
            missing, or a weight that is not finite; names the file and the tensor.
    """
    with torch.device("meta"):
        model = build()
    layers = model.get_submodule("backbone.layers" if head != "backbone" else "layers")
    count = len(list(layers.children()))
    table = name_table(family, head, count)
    use_prefix(weights, family.prefix, wanted=head != "backbone")
    plan, missing = _match(model, weights, {k: v for k, v in table.items() if k not in fresh})
    _refuse_missing(missing, family, head, folder)
    # First what is fresh: of a part that the file has half of, the weights of the file must stay.
    _initialise_missing(model, missing, initialise)
    state = {ours: _tensor(weights, names) for ours, names in plan.items()}
    model.load_state_dict(state, strict=False, assign=True)
    hollow = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if hollow:  # not a user's mistake: a name in no table and no `initialise`
        raise RuntimeError(f"left without values: {_some(tuple(hollow))}")
    used = {name for names in plan.values() for name in names.parts}
    ignored = ignored_names(family, head, count)
    return model, LoadReport(
        source=str(folder),
        loaded=len(used),
        missing=tuple(missing),
        unexpected=tuple(sorted(weights.stored(name) for name in weights.names - used - ignored)),
        converted=weights.converted,
    )


def _match(
    model: nn.Module, weights: WeightSource, table: dict[str, Names]
) -> tuple[dict[str, Names], list[str]]:
    """Which of the file's tensors make up each of ours, and which of ours have none."""
    plan: dict[str, Names] = {}
    missing = []
    for ours, tensor in model.state_dict().items():
        names = table.get(ours)
        if names is None or not weights.names.issuperset(names.parts):
            missing.append(ours)
            continue
        wanted = [tensor.shape[0] // len(names.parts), *tensor.shape[1:]]  # the parts are alike
        if names.transposed:
            wanted.reverse()
        for name in names.parts:
            if weights.shape(name) != wanted:
                raise CheckpointError(
                    f"{weights.file_of(name)}: '{weights.stored(name)}' is {weights.shape(name)}, "
                    f"but config.json makes it {wanted}",
                    "The weights and config.json are not of the same model.",
                )
        plan[ours] = names
    return plan, missing


def _tensor(weights: WeightSource, names: Names) -> Tensor:
    """One of our tensors, put together from the file's."""
    parts = [weights.read(name) for name in names.parts]
    if names.transposed:
        parts = [part.t() for part in parts]
    # A copy in every case: what was read may still be the file's own memory.
    return (
        torch.cat(parts)
        if len(parts) > 1
        else parts[0].clone(memory_format=torch.contiguous_format)
    )


def _refuse_missing(missing: list[str], family: Family, head: str, folder: Path) -> None:
    start = "" if head == "backbone" else "backbone."
    needed = [
        name
        for name in missing
        if name.startswith(start) and not name.startswith(tuple(start + o for o in family.optional))
    ]
    if needed:
        raise CheckpointError(
            f"{folder}: the weights lack {len(needed)} tensors of the {family.model_type} model: "
            f"{_some(tuple(needed))}",
            "The file is of another model, or incomplete: copy it again.",
        )


def _initialise_missing(
    model: nn.Module, missing: list[str], initialise: Callable[[nn.Module, nn.Module], None]
) -> None:
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in missing):
        part = model.get_submodule(owner)
        part.to_empty(device="cpu", recurse=False)
        initialise(model, part)
