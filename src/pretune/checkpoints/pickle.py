"""`pytorch_model.bin`: plain tensors from a pickle, read by torch's restricted unpickler."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pretune.checkpoints.weights import (
    SAFETENSORS_DTYPES,
    WeightSource,
    copy_checked,
    modern,
    no_floats,
    rename_all,
    twice,
    type_name,
)
from pretune.errors import CheckpointError


class Pickled(WeightSource):
    """`pytorch_model.bin`, or its shards.

    Raises:
        CheckpointError: damaged, not only plain tensors, or two different tensors have one name.
    """

    def __init__(self, files: list[Path]) -> None:
        self._where: dict[str, tuple[Path, str]] = {}
        self._tensors: dict[str, Tensor] = {}
        self.converted = 0
        for path in files:
            try:
                # Files of torch before 1.6 are not archives and cannot be mapped.
                mapped = zipfile.is_zipfile(path)
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
                items = list(content.items())
            except Exception as error:  # the unpickler raises many types
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
    @override
    def names(self) -> set[str]:
        return set(self._where)

    @override
    def shape(self, name: str) -> list[int]:
        return list(self._tensors[name].shape)

    @override
    def dtype(self, name: str) -> torch.dtype | None:
        dtype = self._tensors[name].dtype
        return dtype if dtype in SAFETENSORS_DTYPES.values() else None

    @override
    def file_of(self, name: str) -> Path:
        return self._where[name][0]

    @override
    def stored(self, name: str) -> str:
        return self._where[name][1]

    @override
    def rename(self, names: dict[str, str]) -> None:
        for table in (self._where, self._tensors):
            rename_all(table, names)

    @override
    def same(self, first: str, second: str) -> bool:
        return _same(self._tensors[first], self._tensors[second])

    @override
    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        # Always a copy: in a pickle, two tensors may share memory.
        out = torch.empty(self._tensors[name].shape, dtype=dtype)
        self.read_into(name, out)
        return out

    @override
    def read_into(self, name: str, out: Tensor) -> None:
        tensor, (path, stored) = self._tensors[name], self._where[name]
        if self.dtype(name) is None:
            raise no_floats(path, stored, type_name(tensor.dtype))
        self.converted += out.dtype != tensor.dtype
        copy_checked(tensor, out, path, stored)


def _same(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    place = a.data_ptr(), a.stride()
    return place == (b.data_ptr(), b.stride()) or torch.equal(a, b)


def _plain(value: Any) -> bool:
    """Whether a value is a tensor that stores all its elements.

    With strides of 0, a single number can claim to be a matrix of any size.
    """
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_quantized:
        return False
    if value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()
