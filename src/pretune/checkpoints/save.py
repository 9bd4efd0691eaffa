"""Saving weights and `config.json` in the Hugging Face layout."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pretune.checkpoints.config import PACKAGE
from pretune.checkpoints.int8_weights import INT8_FILE, METHOD, QUANTIZATION, stored_tensors
from pretune.checkpoints.names import name_table, rows_of_parts
from pretune.checkpoints.weights import common_dtype, type_name
from pretune.models.families import FAMILIES
from pretune.models.family import Family
from pretune.models.heads.replaced import own_tensors
from pretune.models.lora import merged_state
from pretune.models.pruned import whole_heads


def save_model(
    model: nn.Module,
    folder: Path,
    family: Family,
    head: str,
    extra: Mapping[str, Any] | None = None,
    int8: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` and `model.safetensors` in the model's type, with adapters merged.

    Args:
        model: a backbone, or a model that holds one as `backbone`; without its companion.
        folder: which exists.
        family: gives the names.
        head: which of the family's heads the model has.
        extra: more entries of `config.json`, e.g. `id2label`.
        int8: write `model.int8.safetensors` instead, with the layers that are `int8` in 8 bits;
            what is known of the rounding, for `config.json`.
    """
    backbone = model if head == "backbone" else model.get_submodule("backbone")
    # Our names and orientation to the published ones.
    table = name_table(family, head, backbone.stacks)  # type: ignore[arg-type]
    tensors: dict[str, Tensor] = {}
    for ours, value in whole_heads(backbone, own_tensors(merged_state(model))).items():  # type: ignore[arg-type]
        names = table[ours]
        rows = rows_of_parts(model, ours, len(value), names)
        for name, part in zip(names.parts, torch.split(value, rows), strict=True):
            lying = (part.t() if names.transposed else part).detach().cpu()
            if int8 is not None and getattr(_owner(model, ours), "int8", False) and part.dim() == 2:
                tensors |= stored_tensors(name, lying, outputs=int(names.transposed))
            else:
                tensors[name] = lying.contiguous()
    # The backbone has another prefix beside some heads.
    prefix = family.heads[head].prefix
    if prefix is not None:
        own = {name: name.removeprefix(family.prefix) for name in tensors}
        tensors = {
            name if own[name] == name else prefix + own[name]: value
            for name, value in tensors.items()
        }
    # To a temporary file first: the model may be mapped from the very file that is replaced.
    aside = folder / ".model.safetensors.tmp"
    try:
        _write_tensors(tensors, aside)
        os.replace(aside, folder / ("model.safetensors" if int8 is None else INT8_FILE))
    finally:
        aside.unlink(missing_ok=True)
    saying = {} if int8 is None else {QUANTIZATION: {"quant_method": METHOD, **int8}}
    save_config(model, folder, family, head, {**(extra or {}), **saying})


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors; a full disk is an OSError, as of any other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # in the words of Rust
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def save_config(
    model: nn.Module,
    folder: Path,
    family: Family,
    head: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `config.json` alone; the arguments are those of `save_model`."""
    backbone = model if head == "backbone" else model.get_submodule("backbone")
    config = {
        **backbone.config.to_dict(),  # type: ignore[union-attr, operator]
        "architectures": [family.heads[head].architecture],
        "dtype": type_name(common_dtype(p.dtype for p in model.parameters())),
        **(extra or {}),
    }
    package = FAMILIES.package_of(family.model_type)
    if package is not None:
        config[PACKAGE] = package
    text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])
