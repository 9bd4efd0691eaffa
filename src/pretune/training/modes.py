"""How a model is computed in training: recomputation, compilation, determinism."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from pretune.errors import RunError
from pretune.models.backbone import backbone_of
from pretune.models.heads.replaced import companion_of
from pretune.recipe.schema import TrainSection


def set_modes(model: nn.Module, options: TrainSection, device: torch.device) -> None:
    """Set activation checkpointing and compilation as a recipe says."""
    models = [part for part in (model, companion_of(model)) if part is not None]
    backbones = [backbone_of(part) for part in models]
    for backbone in backbones:
        backbone.recompute = options.activation_checkpointing
    if not options.compile:
        return
    if device.type != "cuda":
        raise RunError(
            f"train.compile: torch.compile is for CUDA; on {device.type} the layers as they are "
            "are faster",
            "Leave it out: train.compile=false.",
        )
    for layer in chain.from_iterable(backbone.layers for backbone in backbones):
        layer.compile(dynamic=True)  # packed batches rarely repeat their number of tokens


@contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Context that forbids operations whose result may differ from run to run."""
    if not enabled:
        yield
        return
    # cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic  # torch gives it no type
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # no empty memory is ever read
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = filled
