"""Where weights lie: the tensors of a folder by name, read one at a time."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pretune.errors import CheckpointError, did_you_mean

#: The types that a model can be in, by the names that config.json has for them.
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
#: safetensors' names of the types that can be read.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class WeightSource(Protocol):
    """Named tensors in the orientation and under the names of the Hugging Face layout.

    Attributes:
        converted: how many tensors were read into another type than they are stored in.
    """

    converted: int

    @property
    def names(self) -> set[str]:
        """All names."""

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor; reads no values."""

    def dtype(self, name: str) -> torch.dtype | None:
        """What a tensor is stored in; None where that is not floats."""

    def stored(self, name: str) -> str:
        """What the file itself calls it."""

    def file_of(self, name: str) -> Path:
        """Where it lies."""

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are alike in type, shape and all values."""

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor that nobody else holds; it may be a private map of the file.

        Raises:
            CheckpointError: damaged, not floats, or not finite; names file and tensor.
        """

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy a tensor into one of its shape, whose type and strides may be others.

        Raises:
            CheckpointError: as `read`.
        """


def named_dtype(name: str) -> torch.dtype | None:
    """The type of that name; None for `auto`.

    Raises:
        CheckpointError: there is none, or a model cannot be in it.
    """
    if name != "auto" and name not in DTYPES:
        raise CheckpointError(
            f"dtype '{name}': a model cannot be in that", did_you_mean(name, [*DTYPES, "auto"])
        )
    return DTYPES.get(name)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest type of `DTYPES` that holds all values of these; float32 is the widest."""
    found = reduce(torch.promote_types, dtypes)
    return found if found in DTYPES.values() else torch.float32


def use_prefix(
    weights: WeightSource, prefix: str, *, wanted: bool, without: AbstractSet[str] = frozenset()
) -> None:
    """Published backbones come with and without their prefix: add or remove it as wanted.

    Args:
        weights: to rename.
        prefix: of the family.
        wanted: whether the backbone's names shall have it.
        without: names that never have it.

    Raises:
        CheckpointError: a tensor is there with and without it, with other values.
    """
    has = {name for name in weights.names if name.startswith(prefix)}
    if wanted:
        names = {} if has else {name: prefix + name for name in weights.names - without}
    else:
        names = {name: name.removeprefix(prefix) for name in has}
    for old, new in sorted(names.items()):
        if new in weights.names and not weights.same(old, new):
            raise twice(weights.file_of(old), weights.stored(new), weights.stored(old))
    weights.rename(names)


def twice(path: Path, one: str, other: str) -> CheckpointError:
    """What to say of two tensors for one place."""
    return CheckpointError(
        f"{path}: '{one}' and '{other}' are one tensor by name, but not of the same values",
        "The file was put together from two models: get another copy, or remove one of each pair.",
    )


def _finite(tensor: Tensor) -> bool:
    # A finite sum proves that all are finite; only a doubtful one is looked at closely.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def checked(tensor: Tensor, path: Path, stored: str) -> Tensor:
    """The tensor, if all of it is finite.

    Raises:
        CheckpointError: it is not; names file and tensor.
    """
    if not _finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"{path}: '{stored}' holds {count} values that are not finite (NaN or infinity)",
            "The checkpoint is broken, perhaps by a training that diverged: use an older one.",
        )
    return tensor


def copy_checked(tensor: Tensor, out: Tensor, path: Path, stored: str) -> None:
    """Copy a tensor into another of its shape, if all of it is and stays finite.

    Raises:
        CheckpointError: it does not; names file and tensor.
    """
    if tensor is not out:
        out.copy_(tensor)
    if not _finite(out):
        checked(tensor, path, stored)
        raise CheckpointError(
            f"{path}: '{stored}' holds values that are too large for {type_name(out.dtype)}",
            "Load it in the type it is stored in, or in bfloat16, which has float32's range.",
        )


def type_name(dtype: torch.dtype) -> str:
    """A type's name as config.json has it."""
    return str(dtype).removeprefix("torch.")


def no_floats(path: Path, stored: str, kind: str) -> CheckpointError:
    """What to say of a tensor that holds something else."""
    return CheckpointError(
        f"{path}: '{stored}' holds {kind}, not float32, float16 or bfloat16",
        "Quantised checkpoints cannot be used: get the float32, float16 or bfloat16 one.",
    )


@dataclass(frozen=True)
class _Entry:
    """A tensor of a safetensors file: `start` is the byte it begins at, `kind` its type there,
    `size` its bytes."""

    path: Path
    stored: str
    kind: str
    shape: list[int]
    start: int
    size: int


class Safetensors:
    """`model.safetensors`, or the shards that its index names; see `WeightSource`.

    Args:
        files: all of them.
        mapped: hand out windows on the files where a tensor needs no change: nothing is copied,
            and the pages are shared with the system's cache until they are written to. A file
            that is cut short afterwards ends the process (SIGBUS). Else all tensors are copies.

    Raises:
        CheckpointError: missing, damaged, or with two tensors for one name.
    """

    def __init__(self, files: list[Path], *, mapped: bool = False) -> None:
        self._entries: dict[str, _Entry] = {}
        self._mapped = mapped
        self._maps: dict[Path, mmap.mmap] = {}
        self.converted = 0
        for path in files:
            for entry in _entries(path):
                before = self._entries.setdefault(modern(entry.stored), entry)
                if before is not entry and not _same_bytes(before, entry):
                    raise twice(path, before.stored, entry.stored)

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._entries)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype | None:
        """What it is stored in."""
        return SAFETENSORS_DTYPES.get(self._entries[name].kind)

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._entries[name].path

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._entries[name].stored

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""
        rename_all(self._entries, names)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are alike; reads them piece by piece."""
        return _same_bytes(self._entries[one], self._entries[other])

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor: a window on the file where that is wanted and nothing has to change."""
        entry = self._entries[name]
        if self._mapped and self.dtype(name) == dtype and entry.start % dtype.itemsize == 0:
            return checked(self._window(entry, dtype), entry.path, entry.stored)
        out = torch.empty(entry.shape, dtype=dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Read straight into a tensor where it has the file's type and order."""
        entry, kind = self._entries[name], self.dtype(name)
        if kind is None:
            raise no_floats(entry.path, entry.stored, entry.kind)
        straight = out.dtype == kind and out.is_contiguous()
        raw = out if straight else torch.empty(entry.shape, dtype=kind)
        try:
            with entry.path.open("rb", buffering=0) as file:
                file.seek(entry.start)
                _fill(file, raw)
        except OSError as error:
            raise _damaged(entry.path, error) from None
        self.converted += out.dtype != kind
        copy_checked(raw, out, entry.path, entry.stored)

    def _window(self, entry: _Entry, dtype: torch.dtype) -> Tensor:
        try:
            if entry.path not in self._maps:
                with entry.path.open("rb") as file:
                    # Private: what is written to the tensors never reaches the file.
                    self._maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            count = torch.Size(entry.shape).numel()
            whole = self._maps[entry.path]
            if not count:
                return torch.empty(entry.shape, dtype=dtype)
            flat = torch.frombuffer(whole, dtype=dtype, count=count, offset=entry.start)
        except (OSError, ValueError) as error:  # shorter than a moment ago
            raise _damaged(entry.path, error) from None
        return flat.view(entry.shape)


def _entries(path: Path) -> Iterable[_Entry]:
    """The tensors of a safetensors file, by its header."""
    try:
        # Its own reader proves that the tensors fill the file, without overlap, and are as large
        # as their shapes say; but where they lie it does not tell.
        with safe_open(path, framework="pt"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    header.pop("__metadata__", None)
    for stored, found in header.items():
        start, end = found["data_offsets"]
        yield _Entry(path, stored, found["dtype"], found["shape"], 8 + size + start, end - start)


def _same_bytes(one: _Entry, other: _Entry) -> bool:
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    if (one.path, one.start) == (other.path, other.start):
        return True
    left, most = one.size, 1 << 18  # of larger pieces, the memory comes anew from the system
    try:
        with one.path.open("rb") as first, other.path.open("rb") as second:
            first.seek(one.start)
            second.seek(other.start)
            while left and first.read(min(left, most)) == second.read(min(left, most)):
                left -= min(left, most)
    except OSError as error:
        raise _damaged(one.path, error) from None
    return not left


def _fill(file: Any, out: Tensor) -> None:
    """Read as many bytes as a contiguous tensor has."""
    left = out.view(-1).view(torch.uint8).numpy().data
    while left:
        count = file.readinto(left)
        if not count:
            raise OSError("it ends too early")
        left = left[count:]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged or not a safetensors file ({error})", "Copy the file again."
    )


def rename_all(table: dict[str, Any], names: dict[str, str]) -> None:
    """All at once: a new name may be another's old one."""
    moved = {new: table.pop(old) for old, new in names.items()}
    table.update(moved)


def modern(name: str) -> str:
    """Google's first releases called LayerNorm's weight gamma and its bias beta."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
