"""Loading weights in the Hugging Face layout, with a full account of what was and was not there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pretune.errors import CheckpointError
from pretune.hub.keys import Family, name_table


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
    """The contents of `config.json`.

    Raises:
        CheckpointError: missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: no config.json here", "Is it a model folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "Copy the file again.")
    return values


def load_into(
    build: Callable[[], nn.Module],
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
        folder: with the weights.
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
    weights = _Weights(folder)
    layers = model.get_submodule("backbone.layers" if head != "backbone" else "layers")
    table = name_table(family, head, len(list(layers.children())))
    weights.use_prefix(family.prefix, wanted=head != "backbone")
    plan, missing = _match(model, weights, {k: v for k, v in table.items() if k not in fresh})
    _refuse_missing(missing, family, head, folder)
    # First what is fresh: of a part that the file has half of, the weights of the file must stay.
    _initialise_missing(model, missing, initialise)
    state = {ours: weights.tensor(theirs) for ours, theirs in plan.items()}
    model.load_state_dict(state, strict=False, assign=True)
    hollow = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if hollow:  # not a user's mistake: a name in no table and no `initialise`
        raise RuntimeError(f"left without values: {_some(tuple(hollow))}")
    used = {name for theirs in plan.values() for name in theirs}
    ignored = {family.prefix + name for name in family.ignored} | set(family.ignored)
    return model, LoadReport(
        source=str(folder),
        loaded=len(used),
        missing=tuple(missing),
        unexpected=tuple(sorted(weights.stored(name) for name in weights.names - used - ignored)),
        converted=weights.converted,
    )


def _match(
    model: nn.Module, weights: _Weights, table: dict[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Which of the file's tensors make up each of ours, and which of ours have none."""
    plan: dict[str, tuple[str, ...]] = {}
    missing = []
    for ours, tensor in model.state_dict().items():
        theirs = table.get(ours)
        if theirs is None or not weights.names.issuperset(theirs):
            missing.append(ours)
            continue
        wanted = [tensor.shape[0] // len(theirs), *tensor.shape[1:]]  # of each part: they are alike
        for name in theirs:
            if weights.shape(name) != wanted:
                raise CheckpointError(
                    f"{weights.file_of(name)}: '{weights.stored(name)}' is {weights.shape(name)}, "
                    f"but config.json makes it {wanted}",
                    "The weights and config.json are not of the same model.",
                )
        plan[ours] = theirs
    return plan, missing


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


class _Weights:
    """The tensors of a folder, found by name, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._files = _weight_files(folder)
        self._where: dict[str, tuple[Path, str]] = {}
        self._shapes: dict[str, list[int]] = {}
        self.converted = 0
        for path in self._files:
            try:
                with safe_open(path, framework="pt") as handle:
                    for stored in handle.keys():  # noqa: SIM118 - not a dict
                        name = _modern(stored)
                        self._where[name] = (path, stored)
                        self._shapes[name] = list(handle.get_slice(stored).get_shape())
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path}: damaged or not a safetensors file ({error})", "Copy the file again."
                ) from None

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> list[int]:
        return self._shapes[name]

    def file_of(self, name: str) -> Path:
        return self._where[name][0]

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._where[name][1]

    def use_prefix(self, prefix: str, *, wanted: bool) -> None:
        """Published backbones come with and without their prefix: add or remove it as wanted."""
        has = any(name.startswith(prefix) for name in self._where)
        if has == wanted:
            return
        for table in (self._where, self._shapes):
            for name in list(table):
                renamed = prefix + name if wanted else name.removeprefix(prefix)
                table[renamed] = table.pop(name)  # type: ignore[assignment]

    def tensor(self, names: tuple[str, ...]) -> Tensor:
        """A float32 copy; several are concatenated along the first dimension."""
        tensors = [self._read(name) for name in names]
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone()

    def _read(self, name: str) -> Tensor:
        path, stored = self._where[name]
        with safe_open(path, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(stored)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: '{stored}' holds {str(tensor.dtype).removeprefix('torch.')}, not floats",
                "Quantised checkpoints cannot be used: get the float32, float16 or bfloat16 one.",
            )
        if tensor.dtype != torch.float32:
            self.converted += 1
            tensor = tensor.to(torch.float32)
        # A finite sum proves that all are finite; only a doubtful one is looked at closely.
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{path}: '{stored}' holds {count} values that are not finite (NaN or infinity)",
                "The checkpoint is broken, perhaps by a training that diverged: use an older one.",
            )
        return tensor


def _modern(name: str) -> str:
    """Google's first releases called LayerNorm's weight gamma and its bias beta."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def _weight_files(folder: Path) -> list[Path]:
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    if any(folder.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{folder}: only pytorch_model.bin here, a pickle, which can run code when opened",
            "Get the model as model.safetensors (most Hub repositories have it, on main or in a "
            "pull request by the conversion bot).",
        )
    raise CheckpointError(
        f"{folder}: no weights here", "Expected model.safetensors or model.safetensors.index.json."
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{index}: not a weight index", "Copy the file again.") from None
    files = []
    for name in sorted(map(str, names)):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(
                f"{index}: names the shard '{name}', which is not there", "Copy all shards."
            )
        files.append(path)
    return files
