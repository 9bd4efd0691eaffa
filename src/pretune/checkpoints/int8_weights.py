"""Weights in 8 bits on disk: `model.int8.safetensors`.

A matrix `NAME.weight` of the published layout is stored as `NAME.weight_int8` and, for each of its
outputs (or rows of a table of embeddings), `NAME.weight_scale`: what an integer stands for. Other
tensors are stored as they are. The file has a name of its own, as readers that know nothing of
this would otherwise initialise the matrices at random: transformers only warns of an unknown method
in `quantization_config`, and goes on.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from typing_extensions import override

from pretune.checkpoints.weights import Safetensors, StoredTensor, checked, copy_checked
from pretune.errors import CheckpointError

#: The file.
INT8_FILE = "model.int8.safetensors"
#: The entry of `config.json` that tells how the weights were rounded, and its method.
QUANTIZATION, METHOD = "quantization_config", "pretune_int8"
_INTEGERS, _SCALE = "_int8", "_scale"


def rounded(weight: Tensor, outputs: int = 0) -> tuple[Tensor, Tensor]:
    """Round a matrix to 8 bits: integers of its shape, and scales that they are multiplied with.

    Args:
        weight: `[out, in]`, or `[in, out]`.
        outputs: the dimension of the outputs, each of which has a scale of its own.
    """
    scale = weight.float().abs().amax(1 - outputs, keepdim=True) / 127
    integers = weight / torch.where(scale == 0, 1.0, scale)
    return integers.round().to(torch.int8), scale


def stored_tensors(name: str, weight: Tensor, outputs: int = 0) -> dict[str, Tensor]:
    """The tensors that a file has for a matrix of the published name `NAME.weight`."""
    integers, scale = rounded(weight, outputs)
    return {name + _INTEGERS: integers.contiguous(), name + _SCALE: scale.contiguous()}


class Int8Safetensors(Safetensors):
    """A file with weights in 8 bits: each is read as the floats that its integers stand for.

    Raises:
        CheckpointError: damaged, or a matrix has no scales that fit.
    """

    def __init__(self, path: Path) -> None:
        super().__init__([path])
        self._scales: dict[str, StoredTensor] = {}
        for stored in [name for name in self.entries if name.endswith(_INTEGERS)]:
            name, entry = stored.removesuffix(_INTEGERS), self.entries.pop(stored)
            scale = self.entries.pop(name + _SCALE, None)
            if scale is None or not _fits(entry, scale) or name in self.entries:
                raise CheckpointError(
                    f"{path}: '{stored}' is not a matrix of 8-bit integers with its scales, "
                    f"'{name}{_SCALE}'",
                    "Copy the file again.",
                )
            self.entries[name], self._scales[entry.stored] = entry, scale

    def is_int8(self, name: str) -> bool:
        """Whether a tensor is stored in 8 bits."""
        return self.stored(name) in self._scales

    @override
    def read_into(self, name: str, out: Tensor) -> None:
        entry = self.entries[name]
        scale = self._scales.get(entry.stored)
        if scale is None:
            super().read_into(name, out)
            return
        with safe_open(entry.path, framework="pt") as file:
            each = checked(file.get_tensor(scale.stored), scale.path, scale.stored)
            copy_checked(file.get_tensor(entry.stored) * each, out, entry.path, entry.stored)

    @override
    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        out = torch.empty(self.shape(name), dtype=dtype)
        self.read_into(name, out)
        return out


def _fits(integers: StoredTensor, scale: StoredTensor) -> bool:
    """Whether scales have one number for each output of a matrix, along either dimension."""
    if len(integers.shape) != 2 or getattr(integers, "kind", "") != "I8":
        return False
    rows, columns = integers.shape
    return scale.dtype == torch.float32 and list(scale.shape) in ([rows, 1], [1, columns])
