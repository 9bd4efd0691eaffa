"""The processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pretune.errors import RunError
from pretune.inference.runtime import choose_device
from pretune.training.lifeline import Lifeline

T = TypeVar("T")


@dataclass
class World:
    """The processes that train together, seen from one of them; by default there is only one."""

    rank: int = 0  # number of this process
    size: int = 1  # number of processes
    local_rank: int = 0  # number of this process on its machine
    local_size: int = 1  # number of processes on its machine
    _replica: DistributedDataParallel | None = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def shards(self, parallel: str) -> bool:
        """Whether each process is to hold only a shard of the model."""
        return self.size > 1 and parallel == "fsdp"

    def spread(
        self, model: nn.Module, parallel: str, device: torch.device, trial: Callable[[], Tensor]
    ) -> None:
        """Let all processes train a model together; it must be the same in all of them.

        Gradients are *summed* over the processes, because a loss is a sum: the optimizer divides by
        the count of the whole batch. With "ddp" each process keeps the whole model, with "fsdp" a
        shard of every tensor.

        Args:
            model: on this process's device already; with "fsdp" wherever it was loaded, as only
                shards go to the device.
            parallel: "ddp" or "fsdp".
            device: of this process.
            trial: computes a loss. DDP searches the graph in every update only if this does not
                reach all parameters.
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
        from pretune.training.sharded import shard_model  # slow to import

        shard_model(model, device, self.size)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The module to call in training in place of the model."""
        return model if self._replica is None else self._replica

    @contextmanager
    def syncing(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Context for a micro-batch: processes exchange gradients only after the last one."""
        quiet: AbstractContextManager[Any] = nullcontext()
        if self._replica is not None and not last:
            quiet = self._replica.no_sync()
        elif self.size > 1 and is_sharded(model):
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        with quiet:
            yield

    def sum(self, figures: Sequence[float], device: torch.device) -> list[float]:
        """Add up figures over all processes."""
        if self.size == 1:
            return list(figures)
        together = torch.tensor(figures, dtype=torch.float64, device=device)
        dist.all_reduce(together)
        sums: list[float] = together.tolist()
        return sums

    def gather(self, mine: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """Collect a value from every process, in the order of their ranks.

        Args:
            mine: this process's.
            group: of all processes, for another thread than the one that trains; None: the usual.
        """
        if self.size == 1:
            return [mine]
        everybody: list[Any] = [None] * self.size
        dist.all_gather_object(everybody, mine, group=group)
        return everybody

    def decided(self, choose: Callable[[], T]) -> T:
        """What the main process chooses, in all processes: files may look different to others."""
        chosen: T = self.gather(choose() if self.main else None)[0]  # type: ignore[assignment]
        return chosen

    def wait(self) -> None:
        """Wait until all processes are here.

        Not by a barrier, which on GPUs is NCCL's: it gives up after some minutes, while the main
        process may well compute for an hour what all others wait for.
        """
        self.gather(None)

    @contextmanager
    def first_on_machine(self, *, really: bool = True) -> Iterator[None]:
        """Context that one process of each machine goes through before its others.

        What it left in a cache, the others read. Without `really` nobody waits.
        """
        if self.size == 1 or not really:
            yield
        elif self.local_rank == 0:
            yield
            self.wait()
        else:
            self.wait()
            yield


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one process's shard of a larger one: a DTensor, whose import is slow."""
    return hasattr(tensor, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds only a shard of the parameters."""
    return any(is_shard(parameter) for parameter in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, or the tensor itself if it is not sharded."""
    shard: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return shard


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy values into a tensor that may be sharded, from one that may be sharded too.

    Of a whole value only the rows of this process's shard are read and go to its device.
    """
    if is_shard(target) and not is_shard(value):
        from pretune.training.sharded import own_rows  # slow to import

        local(target).copy_(own_rows(value, target))
    else:
        target.copy_(value)


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights by name into a model, sharded or not."""
    for name, target in model.state_dict().items():
        assign(target, weights[name])


def _sum_gradients(state, bucket):  # type: ignore[no-untyped-def]
    """A DDP hook that sums, where DDP's own takes the mean.

    Without annotations: DDP refuses hooks whose annotations are strings.
    """
    summed: torch.futures.Future[Any] = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return summed.then(lambda done: done.value()[0])


def environment_world() -> World:
    """The world as torchrun describes it in the environment: `RANK`, `WORLD_SIZE` and so on."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank = int(os.environ["RANK"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return World(rank, size, local_rank, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def own_device(name: str, world: World) -> torch.device:
    """Return the device of this process, for `joined`; a GPU becomes the current one.

    Raises:
        RunError: this machine has no such device, or not for every process.
    """
    if world.local_size > 1 and name.startswith("cuda:"):
        raise RunError(
            f"train.device={name}: {world.local_size} processes on one machine need a GPU each",
            "Set train.device=cuda: each process takes the GPU of its own number.",
        )
    return choose_device(name, world.local_rank if world.size > 1 else None)


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Join the other processes, and leave them in the end.

    What a launcher such as Ray Train has joined already stays joined.

    Raises:
        RunError: the processes do not find each other, or lost each other though none of them is
            known to have died.
    """
    if world.size == 1:
        yield
        return
    ours = not dist.is_initialized()
    store = _meeting_place() if ours else None
    gather = world.gather if store is None else _gather_in(store, world)
    try:
        # Before the group: who waits in it for a process that has died waits for half an hour.
        with Lifeline(world.rank, world.size, world.local_rank, gather):
            if store is not None:
                _join(device, store, world)
            yield
    finally:
        if ours and dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _while_meeting() -> Iterator[None]:
    """Turn torch's errors of processes that do not find each other into ours."""
    try:
        yield
    except (dist.DistError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise RunError(
            f"the processes of this run do not find each other ({reason})",
            "Did one of them end? Start them by torchrun, or set MASTER_ADDR, MASTER_PORT, RANK "
            "and WORLD_SIZE; --resume auto goes on from the last checkpoint.",
        ) from None


def _meeting_place() -> Any:
    """Open the store through which the processes find each other, as torchrun names it.

    Raises:
        RunError: it cannot be reached.
    """
    with _while_meeting():
        store, _, _ = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    return dist.PrefixStore("pretune", store)  # type: ignore[attr-defined]


def _gather_in(store: Any, world: World) -> Callable[[Any], list[Any]]:
    """Return what gathers values of JSON by a store, before there is a group to gather in."""
    rounds = itertools.count()

    def gather(mine: Any) -> list[Any]:
        number = next(rounds)
        with _while_meeting():
            store.set(f"{number}/{world.rank}", json.dumps(mine))
            return [json.loads(store.get(f"{number}/{rank}")) for rank in range(world.size)]

    return gather


def _join(device: torch.device, store: Any, world: World) -> None:
    """Join the default group: what lies on the host goes by gloo, what lies on a GPU by NCCL."""
    place = {"store": store, "rank": world.rank, "world_size": world.size}
    # NCCL has to know the GPU of this process: else it takes any for the first exchange.
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, **place)
    else:
        dist.init_process_group("gloo", **place)
