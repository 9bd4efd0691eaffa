"""Sharded tensors on disk, by torch.distributed.checkpoint.

Each process writes its shards as safetensors files, whose headers tell the place of each in its
tensor; nothing is pickled. They can be read back with another number of processes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pretune.errors import CheckpointError


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write this process's shards; all processes must do so together, into one folder."""
    with _quiet():
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save(dict(tensors), storage_writer=writer)


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
