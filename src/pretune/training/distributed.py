"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass
class World:
    """One process among those that train together; by default the only one.

    Attributes:
        rank: which one.
        size: of how many.
        local_rank: which one on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    _replica: DistributedDataParallel | None = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    def spread(self, model: nn.Module, parallel: str) -> None:
        """Make a model, the same in all processes, train in all of them.

        Gradients are *summed* over the processes: the loss is a sum, and who knows the count of the
        whole batch divides.

        Args:
            model: on this process's device.
            parallel: "ddp": each keeps all of it; "fsdp": each keeps a share of every tensor.
        """
        if self.size == 1:
            return
        if parallel == "ddp":
            self._replica = DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=True
            )
            self._replica.register_comm_hook(None, _sum_gradients)
            return
        layers = model.get_submodule("backbone.layers")
        for module in (*layers.children(), model):
            shard = fully_shard(module)
            shard.set_gradient_divide_factor(1.0)
            shard.set_force_sum_reduction_for_comms(True)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """What to call in training, in place of the model."""
        return model if self._replica is None else self._replica

    @contextmanager
    def syncing(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Around one micro-batch: gradients are summed over the processes after the last one."""
        quiet: AbstractContextManager[Any] = nullcontext()
        if self._replica is not None and not last:
            quiet = self._replica.no_sync()
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        with quiet:
            yield

    def sum(self, figures: Sequence[float], device: torch.device) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(figures)
        together = torch.tensor(figures, dtype=torch.float64, device=device)
        dist.all_reduce(together)
        found: list[float] = together.tolist()
        return found

    def gather(self, mine: T) -> list[T]:
        """What each process gives, in the order of their ranks."""
        if self.size == 1:
            return [mine]
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine)
        return everybody

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def _sum_gradients(state: None, bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's own hook takes the mean. `bucket` is a `torch.distributed.GradBucket`."""
    summed: torch.futures.Future[Any] = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return summed.then(lambda done: done.value()[0])


def environment_world() -> World:
    """The place torchrun gave this process, by `RANK`, `WORLD_SIZE` and `LOCAL_RANK`."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank = int(os.environ["RANK"])
    return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)))


@contextmanager
def joined(device_type: str) -> Iterator[World]:
    """Meet the other processes, and part from them in the end."""
    world = environment_world()
    if world.size == 1:
        yield world
        return
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()
