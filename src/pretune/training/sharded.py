"""Sharded models: cut up without ever being whole on a device, put together, written and read.

On disk by torch.distributed.checkpoint: each process writes its shards as safetensors files, whose
headers tell the place of each in its tensor; nothing is pickled. They can be read back with another
number of processes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from pretune.errors import CheckpointError


@torch.no_grad()
def shard_model(model: nn.Module, device: torch.device, size: int) -> None:
    """Leave each of `size` processes its shard of every parameter, on its device.

    The layers are sharded one by one, so that each is put together only while it computes. Nothing
    whole is ever on the device: the model is emptied, cut up, and the shards are filled with their
    rows of the weights, wherever these lie. Of a file that is mapped, only those rows are read.
    Gradients are summed, not averaged.

    Args:
        model: the same in all processes, with its layers in `backbone.layers`. It stays the same
            object; parameters that modules share stay shared.
        device: of this process.
        size: number of processes.
    """
    weights = _emptied(model)
    # Named, as the default is a GPU wherever there is one.
    mesh = init_device_mesh(device.type, (size,))
    for module in (*model.get_submodule("backbone.layers").children(), model):
        shard = fully_shard(module, mesh=mesh)
        shard.set_gradient_divide_factor(1.0)
        shard.set_force_sum_reduction_for_comms(True)
    # Memory for the shards. Buffers are whole and have their values; they would lose them.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)  # noqa: S101 - for the type checker
        parameter.to_local().copy_(own_rows(weights[name], parameter))


def _emptied(model: nn.Module) -> dict[str, Tensor]:
    """Move all parameters to the meta device; returns what they were, by their first names."""
    own = dict(model.named_parameters())
    hollow = {
        parameter: nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in own.values()
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, hollow[parameter])
    return {name: parameter.detach() for name, parameter in own.items()}


def own_rows(value: Tensor, shard: Tensor) -> Tensor:
    """This process's rows of a whole tensor, as `fully_shard` cuts it; a view.

    Args:
        value: `[N, ...]`.
        shard: a DTensor `[N, ...]`.
    """
    assert isinstance(shard, DTensor)  # noqa: S101 - for the type checker
    rank, parts = shard.device_mesh.get_local_rank(), value.chunk(shard.device_mesh.size())
    # More processes than rows: the last ones have none.
    return parts[rank] if rank < len(parts) else value[:0]


@torch.no_grad()
def put_together(shard: Tensor, rank: int, size: int, group: dist.ProcessGroup) -> Tensor | None:
    """Put a tensor together in the first process, on the CPU; the others only send their rows.

    All processes must call this together, in the same order of tensors.

    Args:
        shard: a DTensor `[N, ...]`.
        rank: of this process.
        size: number of processes.
        group: all processes, by gloo.

    Returns:
        `[N, ...]` in the first process, None in the others.
    """
    assert isinstance(shard, DTensor)  # noqa: S101 - for the type checker
    mine = shard.to_local().cpu().contiguous()
    if rank > 0:
        if len(mine):
            dist.send(mine, 0, group=group)
        return None
    together = torch.empty(shard.shape, dtype=mine.dtype)
    # Ranges of rows, hence contiguous: each is received where it belongs.
    for number, part in enumerate(together.chunk(size)):
        if number == 0:
            part.copy_(mine)
        else:
            dist.recv(part, number, group=group)
    return together


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None
) -> None:
    """Write this process's shards; all processes must do so together, into one folder.

    Args:
        folder: which need not exist.
        tensors: by name; DTensors.
        group: of all processes, for another thread than the one that trains.

    Raises:
        OSError: one of the processes could not write; raised in all of them.
    """
    try:
        with _quiet():
            writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
            save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:  # not an Exception, and never meant for people
        causes = [cause for _, (cause, _) in sorted(error.failures.items())]
        known = next((cause for cause in causes if isinstance(cause, OSError)), None)
        raise (known or RuntimeError(str(causes[0]))) from None


def read_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, sharded or not, in place."""
    alone = not dist.is_initialized()
    try:
        with _quiet():
            reader = HuggingFaceStorageReader(str(folder))
            load(dict(tensors), storage_reader=reader, no_dist=alone)
    except (RuntimeError, ValueError, KeyError, OSError, CheckpointException) as error:
        reason = str(error).strip().split("\n")[-1]
        raise CheckpointError(
            f"{folder}: the state of the run cannot be read ({type(error).__name__}: {reason})",
            "Remove this checkpoint, and the one before it is taken.",
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without torch's remarks about its own interfaces."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
