"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
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

    def spread(self, model: nn.Module, parallel: str, trial: Callable[[], Tensor]) -> None:
        """Make a model, the same in all processes, train in all of them.

        Gradients are *summed* over the processes: the loss is a sum, and who knows the count of the
        whole batch divides.

        Args:
            model: on this process's device.
            parallel: "ddp": each keeps all of it; "fsdp": each keeps a share of every tensor.
            trial: gives the loss of anything: parameters that it does not reach cost a search of
                the graph in every update.
        """
        if self.size == 1:
            return
        if parallel == "ddp":
            trial().backward()  # type: ignore[no-untyped-call]
            trained = [p for p in model.parameters() if p.requires_grad]
            unreached = any(parameter.grad is None for parameter in trained)
            model.zero_grad()
            self._replica = DistributedDataParallel(model, find_unused_parameters=unreached)
            self._replica.register_comm_hook(None, _sum_gradients)
            return
        from torch.distributed.fsdp import fully_shard  # slow to import

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
        elif self.size > 1 and is_sharded(model):
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
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


def is_share(tensor: Tensor) -> bool:
    """Whether it is one process's share of a larger one: a DTensor, whose import is slow."""
    return hasattr(tensor, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a share of the parameters."""
    return any(is_share(parameter) for parameter in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, or the tensor if it is not shared out."""
    share: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return share


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; where it is shared out, every process must ask."""
    full: Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return full


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy values into a tensor that may be shared out, from one that is not or likewise."""
    if is_share(target) and not is_share(value):
        from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import

        assert isinstance(target, DTensor)  # noqa: S101 - for the type checker
        mesh, placements = target.device_mesh, target.placements
        value = distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)
    target.copy_(value)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into a model, however it is spread.

    Raises:
        KeyError: one is missing.
    """
    for name, target in model.state_dict().items():
        assign(target, weights[name])


def _sum_gradients(state, bucket):  # type: ignore[no-untyped-def]
    """DDP's own hook takes the mean; and it refuses hooks whose annotations are texts."""
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
