"""`pytorch_model.bin`: weights in a pickle, of which only plain tensors are taken."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretune.checkpoints.weights import (
    SAFETENSORS_DTYPES,
    copy_checked,
    modern,
    no_floats,
    rename_all,
    twice,
    type_name,
)
from pretune.errors import CheckpointError


class Pickled:
    """`pytorch_model.bin`, or its shards, by torch's restricted unpickler; see `WeightSource`.

    Raises:
        CheckpointError: damaged, holding anything but tensors, or two of them for one name.
    """

    def __init__(self, files: list[Path]) -> None:
        self._where: dict[str, tuple[Path, str]] = {}
        self._tensors: dict[str, Tensor] = {}
        self.converted = 0
        for path in files:
            try:
                # What torch wrote before 1.6 is no archive, and cannot be mapped.
                mapped = zipfile.is_zipfile(path)
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
                items = list(found.items())
            except Exception as error:  # the unpickler raises many kinds
                reason = str(error).strip().split("\n")[0]
                raise CheckpointError(
                    f"{path}: not a file of plain tensors ({type(error).__name__}: {reason})",
                    "Get the model as model.safetensors.",
                ) from None
            for stored, tensor in items:
                if not _plain(tensor):
                    raise CheckpointError(
                        f"{path}: '{stored}' is not a plain tensor", "Get another copy."
                    )
                name = modern(str(stored))
                if name in self._tensors and not _same(self._tensors[name], tensor):
                    raise twice(path, self._where[name][1], str(stored))
                self._where[name] = (path, str(stored))
                self._tensors[name] = tensor.detach()

    @property
    def names(self) -> set[str]:
        """All names."""
        return set(self._where)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor."""
        return list(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype | None:
        """What it is stored in."""
        dtype = self._tensors[name].dtype
        return dtype if dtype in SAFETENSORS_DTYPES.values() else None

    def file_of(self, name: str) -> Path:
        """Where it lies."""
        return self._where[name][0]

    def stored(self, name: str) -> str:
        """What the file itself calls it."""
        return self._where[name][1]

    def rename(self, names: dict[str, str]) -> None:
        """Call tensors by other names from now on: old -> new."""
        for table in (self._where, self._tensors):
            rename_all(table, names)

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors are alike; no value is read where they are one."""
        return _same(self._tensors[one], self._tensors[other])

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """A copy of a tensor: in a pickle, two may share their memory."""
        out = torch.empty(self._tensors[name].shape, dtype=dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy a tensor into another."""
        tensor, (path, stored) = self._tensors[name], self._where[name]
        if self.dtype(name) is None:
            raise no_floats(path, stored, type_name(tensor.dtype))
        self.converted += out.dtype != tensor.dtype
        copy_checked(tensor, out, path, stored)


def _same(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    place = one.data_ptr(), one.stride()
    return place == (other.data_ptr(), other.stride()) or torch.equal(one, other)


def _plain(value: Any) -> bool:
    """Whether it is a tensor whose values are all there.

    One number can be said to be a matrix of any size, every row and column at the same place.
    """
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    if value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
