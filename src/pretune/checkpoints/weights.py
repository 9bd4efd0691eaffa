"""Weights on disk: tensors by name, read one at a time; safetensors files."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from pretune.errors import CheckpointError, did_you_mean, note
from pretune.text.file_kinds import refuse_lfs_pointer

#: The types a model can have, by their names in config.json.
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: The types that can be read, by safetensors' names.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: what is known without reading its values."""

    path: Path  # the file that holds it
    stored: str  # its name in the file
    shape: list[int]  # in the Hugging Face layout
    dtype: torch.dtype | None  # None if it does not hold floats


class WeightSource:
    """Named tensors, with the names and the orientation of the Hugging Face layout."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}  # a `StoredTensor` for each name
        self.converted = 0  # number of tensors that were read into another type than the stored one

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self.entries)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor; reads no values."""
        return list(self.entries[name].shape)

    def dtype(self, name: str) -> torch.dtype | None:
        """The stored type of a tensor; None if it does not hold floats."""
        dtype: torch.dtype | None = self.entries[name].dtype
        return dtype

    def stored(self, name: str) -> str:
        """The name of a tensor in the file itself."""
        return str(self.entries[name].stored)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return Path(self.entries[name].path)

    def rename(self, names: dict[str, str]) -> None:
        """Rename tensors: old name -> new name."""
        # All at once, as a new name may be the old name of another tensor.
        moved = {new: self.entries.pop(old) for old, new in names.items()}
        self.entries.update(moved)

    def spelled(self, name: str) -> str:
        """Spell a name that the file lacks as the file would, by the tensor most similar to it."""
        for known in sorted(self.entries, key=lambda other: -_equal_start(other, name)):
            stored = self.stored(known)
            size = _equal_start(known[::-1], stored[::-1])
            here, there = known[: len(known) - size], stored[: len(stored) - size]
            # Both may begin with something that the other lacks, such as the family's prefix.
            if size and name.startswith(here) and not {here[-1:], there[-1:]} - {"", "."}:
                return there + name.removeprefix(here)
        return name

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors have the same type, shape and values."""
        a, b = ((self.dtype(name), self.shape(name)) for name in (first, second))
        return a == b and torch.equal(self.read(first), self.read(second))

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read a tensor into memory of its own, or as a private map of the file.

        Raises:
            CheckpointError: damaged, not floats, or not finite; names file and tensor.
        """
        out = torch.empty(self.shape(name), dtype=dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy a tensor into another of the same shape and any type and strides.

        Raises:
            CheckpointError: as for `read`.
        """
        raise NotImplementedError


def _equal_start(a: str, b: str) -> int:
    """The number of characters with which two texts begin alike."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def named_dtype(name: str) -> torch.dtype | None:
    """Look up a type by name; None for `auto`. Others are a `CheckpointError`."""
    if name != "auto" and name not in DTYPES:
        raise CheckpointError(
            f"dtype '{name}': not a type that a model can have",
            did_you_mean(name, [*DTYPES, "auto"]),
        )
    return DTYPES.get(name)


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The narrowest of `DTYPES` that holds all values of the given types; at most float32."""
    common = reduce(torch.promote_types, dtypes)
    return common if common in DTYPES.values() else torch.float32


def use_prefix(
    weights: WeightSource, prefix: str, *, wanted: bool, without: AbstractSet[str] = frozenset()
) -> None:
    """Add or remove the prefix of a backbone's names; published files come both ways.

    Args:
        weights: to rename.
        prefix: of the family.
        wanted: whether the backbone's names need the prefix.
        without: names that never have it.

    Raises:
        CheckpointError: a tensor exists with and without the prefix, with different values.
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


#: What torch.compile, FSDP and activation checkpointing put into names, wherever a part is wrapped.
_INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: What DataParallel and classes that hold a model as `model` put before all names.
_FRONTS = ("module.", "model.")


def drop_wrappers(weights: WeightSource, known: AbstractSet[str]) -> None:
    """Rename tensors that a wrapper of PyTorch named, and say so.

    Args:
        weights: to rename.
        known: names that a model of the family has, with its prefix and without.

    Raises:
        CheckpointError: two tensors get one name, and have different values.
    """
    names = {name: _INNER.sub("", name) for name in weights.names}
    # A name of the family ends it: a Marian's own names begin with "model.".
    while known.isdisjoint(names.values()):
        front = next((f for f in _FRONTS if any(n.startswith(f) for n in names.values())), None)
        if front is None:  # another model: errors name what the file has
            return
        names = {old: new.removeprefix(front) for old, new in names.items()}
    names = {old: new for old, new in sorted(names.items()) if old != new}
    if not names:
        return
    # Of two tensors that get one name, one is enough where both agree.
    first: dict[str, str] = {name: name for name in weights.names - names.keys()}
    for old, new in names.items():
        other = first.setdefault(new, old)
        if other != old and not weights.same(other, old):
            raise twice(weights.file_of(old), weights.stored(other), weights.stored(old))
    old, new = next((old, new) for old, new in names.items() if new in known)
    note(
        f"{weights.file_of(old)}: names are read without what a wrapper of PyTorch adds: "
        f"'{weights.stored(old)}' as '{new}'"
    )
    weights.rename(names)


def twice(path: Path, first: str, second: str) -> CheckpointError:
    """The error for two different tensors with one name."""
    return CheckpointError(
        f"{path}: '{first}' and '{second}' are names of one tensor, but have different values",
        "The file was put together from two models: get another copy, or remove one of each pair.",
    )


def _finite(tensor: Tensor) -> bool:
    # A finite sum proves that all values are finite. Only if it is not, look at each.
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def checked(tensor: Tensor, path: Path, stored: str) -> Tensor:
    """Return the tensor; a `CheckpointError` names file and tensor if a value is not finite."""
    if not _finite(tensor):
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(
            f"{path}: '{stored}' holds {count} values that are not finite (NaN or infinity)",
            "The checkpoint is broken, perhaps by a training that diverged: use an older one.",
        )
    return tensor


def copy_checked(tensor: Tensor, out: Tensor, path: Path, stored: str) -> None:
    """Copy a tensor into another of its shape, and check that all values are finite.

    Raises:
        CheckpointError: a value is not finite, before or after; names file and tensor.
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
    """The name of a type in config.json."""
    return str(dtype).removeprefix("torch.")


def no_floats(path: Path, stored: str, kind: str) -> CheckpointError:
    """The error for a tensor that does not hold floats."""
    return CheckpointError(
        f"{path}: '{stored}' holds {kind}, not float32, float16 or bfloat16",
        "Quantised checkpoints cannot be used: get the float32, float16 or bfloat16 one.",
    )


@dataclass(frozen=True)
class _Entry(StoredTensor):
    kind: str  # safetensors' name of its type
    start: int  # its first byte
    size: int  # in bytes


class Safetensors(WeightSource):
    """`model.safetensors`, or the shards that its index names.

    Args:
        files: one file, or all shards.
        mapped: map tensors that need no change instead of copying them. The pages are shared with
            the system's cache until they are written to. If the file is cut short afterwards, the
            process ends (SIGBUS).

    Raises:
        CheckpointError: missing, damaged, or two different tensors have one name.
    """

    def __init__(self, files: list[Path], *, mapped: bool = False) -> None:
        super().__init__()
        self._mapped = mapped
        self._maps: dict[Path, mmap.mmap] = {}
        for path in files:
            for entry in _entries(path):
                before = self.entries.setdefault(modern(entry.stored), entry)
                if before is not entry and not _same_bytes(before, entry):
                    raise twice(path, before.stored, entry.stored)

    @override
    def same(self, first: str, second: str) -> bool:
        return _same_bytes(self.entries[first], self.entries[second])

    @override
    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        entry: _Entry = self.entries[name]
        if self._mapped and entry.dtype == dtype and entry.start % dtype.itemsize == 0:
            return checked(self._window(entry, dtype), entry.path, entry.stored)
        return super().read(name, dtype)

    @override
    def read_into(self, name: str, out: Tensor) -> None:
        # Straight into the tensor if it has the file's type and order.
        entry: _Entry = self.entries[name]
        kind = entry.dtype
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
        # safetensors' own reader checks that the tensors fill the file without overlap, and that
        # their sizes fit their shapes. It does not tell where they are, so read the header too.
        with safe_open(path, framework="pt"), path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    header.pop("__metadata__", None)
    for stored, item in header.items():
        start, end = item["data_offsets"]
        kind, place = item["dtype"], (8 + size + start, end - start)
        dtype = SAFETENSORS_DTYPES.get(kind)
        yield _Entry(path, stored, item["shape"], dtype, kind, *place)


def _same_bytes(a: _Entry, b: _Entry) -> bool:
    if (a.kind, a.shape) != (b.kind, b.shape):
        return False
    if (a.path, a.start) == (b.path, b.start):
        return True
    left, piece = a.size, 1 << 18  # larger pieces would be fresh memory from the system each time
    try:
        with a.path.open("rb") as first, b.path.open("rb") as second:
            first.seek(a.start)
            second.seek(b.start)
            while left and first.read(min(left, piece)) == second.read(min(left, piece)):
                left -= min(left, piece)
    except OSError as error:
        raise _damaged(a.path, error) from None
    return not left


def _fill(file: Any, out: Tensor) -> None:
    """Fill a contiguous tensor with the next bytes of a file."""
    left = out.view(-1).view(torch.uint8).numpy().data
    while left:
        count = file.readinto(left)
        if not count:
            raise OSError("unexpected end of file")
        left = left[count:]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    refuse_lfs_pointer(path)
    return CheckpointError(
        f"{path}: damaged or not a safetensors file ({error})", "Copy the file again."
    )


def modern(name: str) -> str:
    """Translate Google's early names of LayerNorm's weight and bias, gamma and beta."""
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
