"""Where weights lie: the tensors of a folder by name, read one at a time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretune.errors import CheckpointError


class WeightSource(Protocol):
    """Named tensors in the orientation and under the names of the Hugging Face layout."""

    converted: int

    @property
    def names(self) -> set[str]:
        """All names."""

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor; reads no values."""

    def stored(self, name: str) -> str:
        """What the file itself calls it."""

    def file_of(self, name: str) -> Path:
        """Where it lies."""

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""

    def read(self, name: str) -> Tensor:
        """A float32 tensor.

        Raises:
            CheckpointError: damaged, not floats, or not finite; names file and tensor.
        """


def use_prefix(weights: WeightSource, prefix: str, *, wanted: bool) -> None:
    """Published backbones come with and without their prefix: add or remove it as wanted."""
    has = any(name.startswith(prefix) for name in weights.names)
    if has and not wanted:
        weights.rename({name: name.removeprefix(prefix) for name in weights.names})
    elif wanted and not has:
        weights.rename({name: prefix + name for name in weights.names})


def checked(tensor: Tensor, path: Path, stored: str) -> Tensor:
    """The tensor, if all of it is finite.

    Raises:
        CheckpointError: it is not; names file and tensor.
    """
    # A finite sum proves that all are finite; only a doubtful one is looked at closely.
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"{path}: '{stored}' holds {count} values that are not finite (NaN or infinity)",
            "The checkpoint is broken, perhaps by a training that diverged: use an older one.",
        )
    return tensor


class Safetensors:
    """`model.safetensors`, or the shards that its index names; see `WeightSource`.

    Raises:
        CheckpointError: missing or damaged.
    """

    def __init__(self, files: list[Path]) -> None:
        self._where: dict[str, tuple[Path, str]] = {}
        self._shapes: dict[str, list[int]] = {}
        self.converted = 0
        for path in files:
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
        """All names."""
        return set(self._where)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        return self._shapes[name]

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._where[name][0]

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._where[name][1]

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""
        for table in (self._where, self._shapes):
            _rename(table, names)

    def read(self, name: str) -> Tensor:
        """A float32 tensor of its own memory."""
        path, stored = self._where[name]
        with safe_open(path, framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(stored)
        plain = as_float32(tensor, path, stored)
        self.converted += plain.dtype != tensor.dtype
        return checked(plain, path, stored)


class Pickled:
    """`pytorch_model.bin`, or its shards, by torch's restricted unpickler; see `WeightSource`.

    Raises:
        CheckpointError: damaged, or holding anything but tensors.
    """

    def __init__(self, files: list[Path]) -> None:
        self._where: dict[str, tuple[Path, str]] = {}
        self._tensors: dict[str, Tensor] = {}
        self.converted = 0
        for path in files:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                items = list(found.items())
            except Exception as error:  # the unpickler raises many kinds
                reason = str(error).strip().split("\n")[0]
                raise CheckpointError(
                    f"{path}: not a file of plain tensors ({type(error).__name__}: {reason})",
                    "Get the model as model.safetensors.",
                ) from None
            for stored, tensor in items:
                if not isinstance(tensor, Tensor):
                    raise CheckpointError(
                        f"{path}: '{stored}' is not a tensor", "Get another copy."
                    )
                name = _modern(str(stored))
                self._where[name] = (path, str(stored))
                self._tensors[name] = tensor

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._where)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        return list(self._tensors[name].shape)

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._where[name][0]

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._where[name][1]

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""
        for table in (self._where, self._tensors):
            _rename(table, names)

    def read(self, name: str) -> Tensor:
        """A float32 tensor."""
        path, stored = self._where[name]
        tensor = self._tensors[name]
        plain = as_float32(tensor, path, stored)
        self.converted += plain.dtype != tensor.dtype
        return checked(plain, path, stored)


def _rename(table: dict[str, Any], names: dict[str, str]) -> None:
    """All at once: a new name may be another's old one."""
    moved = {new: table.pop(old) for old, new in names.items()}
    table.update(moved)


def as_float32(tensor: Tensor, path: Path, stored: str) -> Tensor:
    """The tensor in float32.

    Raises:
        CheckpointError: it does not hold floats.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{path}: '{stored}' holds {str(tensor.dtype).removeprefix('torch.')}, not floats",
            "Quantised checkpoints cannot be used: get the float32, float16 or bfloat16 one.",
        )
    return tensor.to(torch.float32)


def _modern(name: str) -> str:
    """Google's first releases called LayerNorm's weight gamma and its bias beta."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def open_weights(folder: Path, *, allow_pickle: bool = False) -> WeightSource:
    """The weights of a folder, whatever their format.

    Args:
        folder: with `model.safetensors` or an index of its shards; Google's `bert_model.ckpt.*`;
            or `pytorch_model.bin`.
        allow_pickle: read `pytorch_model.bin` too, by torch's restricted unpickler.

    Raises:
        CheckpointError: there are none, they are damaged, or a pickle that was not allowed.
    """
    if (folder / "model.safetensors").is_file():
        return Safetensors([folder / "model.safetensors"])
    if (folder / "model.safetensors.index.json").is_file():
        return Safetensors(_shards(folder / "model.safetensors.index.json"))
    single, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    pickles = _shards(index) if index.is_file() else [single] if single.is_file() else []
    if not pickles:
        from pretune.hub.tensorflow import TensorFlowCheckpoint, find_tensorflow

        prefix = find_tensorflow(folder)
        if prefix is not None:
            return TensorFlowCheckpoint(prefix)
        raise CheckpointError(
            f"{folder}: no weights here",
            "Expected model.safetensors or model.safetensors.index.json.",
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{folder}: only pytorch_model.bin here, a pickle, which can run code when opened",
            "Get the model as model.safetensors (most Hub repositories have it), or, if you trust "
            "where it came from, turn it into one: pretune convert SOURCE FOLDER --allow-pickle",
        )
    return Pickled(pickles)


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
