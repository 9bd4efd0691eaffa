"""`pytorch_model.bin`: plain tensors from a pickle, read by torch's restricted unpickler."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pretune.checkpoints.weights import (
    SAFETENSORS_DTYPES,
    StoredTensor,
    WeightSource,
    copy_checked,
    modern,
    no_floats,
    twice,
    type_name,
)
from pretune.errors import CheckpointError
from pretune.text.file_kinds import refuse_lfs_pointer


@dataclass(frozen=True)
class _Entry(StoredTensor):
    tensor: Tensor


class Pickled(WeightSource):
    """`pytorch_model.bin`, or its shards.

    Raises:
        CheckpointError: damaged, not only plain tensors, or two different tensors have one name.
    """

    def __init__(self, files: list[Path]) -> None:
        super().__init__()
        for path in files:
            try:
                # Files of torch before 1.6 are not archives and cannot be mapped.
                mapped = zipfile.is_zipfile(path)
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
                items = list(content.items())
            except Exception as error:  # the unpickler raises many types
                refuse_lfs_pointer(path)
                reason = str(error).strip().split("\n")[0]
                raise CheckpointError(
                    f"{path}: not a file of plain tensors ({type(error).__name__}: {reason})",
                    "Get the model as model.safetensors.",
                ) from None
            for stored, tensor in items:
                if not _plain(tensor):
                    raise CheckpointError(
                        f"{path}: '{stored}' is not a plain tensor",
                        "A training checkpoint of another tool: save the state_dict of the model "
                        "alone, best with save_pretrained."
                        if isinstance(tensor, dict)
                        else "Get another copy.",
                    )
                kind = tensor.dtype if tensor.dtype in SAFETENSORS_DTYPES.values() else None
                entry = _Entry(path, str(stored), list(tensor.shape), kind, tensor.detach())
                before = self.entries.get(modern(entry.stored))
                if before is not None and not _same(before.tensor, tensor):
                    raise twice(path, before.stored, entry.stored)
                self.entries[modern(entry.stored)] = entry

    @override
    def same(self, first: str, second: str) -> bool:
        return _same(self.entries[first].tensor, self.entries[second].tensor)

    @override
    def read_into(self, name: str, out: Tensor) -> None:
        entry: _Entry = self.entries[name]
        if entry.dtype is None:
            raise no_floats(entry.path, entry.stored, type_name(entry.tensor.dtype))
        self.converted += out.dtype != entry.dtype
        copy_checked(entry.tensor, out, entry.path, entry.stored)


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
