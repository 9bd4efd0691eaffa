"""Starts groups of processes cheaply: imports everything once, and forks for each.

Speaks JSON lines: what to do, answered by how each process ended. A child is forked before torch
computed anything and while there is one thread, so that it is as good as a fresh interpreter (tests
that forked from pytest itself stood still now and then).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

from pretune.errors import PretuneError

#: Seconds until a group is taken to hang.
PATIENCE = 240.0
#: Seconds that the others have to end by themselves when one process has failed.
GRACE = 60.0


def poison() -> None:
    """Example 17 makes the loss NaN."""
    import torch

    from pretune.tasks.base import Loss
    from pretune.tasks.classification.classify import Classify

    original = Classify.loss

    def poisoned(self: Classify, outputs: Any, batch: Any) -> Loss:
        found = original(self, outputs, batch)
        bad = torch.is_grad_enabled() and 17 in batch.index.tolist()
        return Loss(found.sum * (float("nan") if bad else 1.0), found.count)

    Classify.loss = poisoned  # type: ignore[method-assign]


def local_count() -> None:
    """Each process divides by its own count, as DDP's mean of means does."""
    from pretune.training.distributed import World

    original = World.sum

    def own(self: World, figures: Any, device: Any) -> list[float]:
        found = original(self, figures, device)
        return [found[0], float(figures[1]) * self.size, *found[2:]]

    World.sum = own  # type: ignore[method-assign]


def callbacks() -> None:
    """One that asks for an end after update 2, and one that fails there; a recipe names them."""
    from pretune.training.callbacks import CALLBACKS, Moment

    class Enough:
        def on_step(self, moment: Moment) -> None:
            if moment.step == 2:
                moment.stop("good enough")

    class Fails:
        def on_step(self, moment: Moment) -> None:
            if moment.step == 2:
                raise ValueError("no")

    CALLBACKS.add("enough", Enough)
    CALLBACKS.add("fails", Fails)


def refuse() -> None:
    """Reading the data is an error in the last process alone."""
    from pretune.errors import DataError
    from pretune.training import run

    original = run.read_data

    def refusing(recipe: Any) -> Any:
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            raise DataError("films.tsv: line 3 is not there", "Put it back.")
        return original(recipe)

    run.read_data = refusing


def fall_over() -> None:
    """The last process meets a mistake of ours in its third update."""
    from pretune.training.loop import Trainer

    original = Trainer.gradients

    def failing(self: Trainer, batch: Any) -> Any:
        if self.world.rank == self.world.size - 1 and self.history.steps == 2:
            raise KeyError("nobody expected this")
        return original(self, batch)

    Trainer.gradients = failing  # type: ignore[method-assign]


def die_joining() -> None:
    """The last process is killed while the others wait for it in the group."""
    from pretune.training import distributed

    join = distributed._join

    def dying(*where: Any) -> None:
        if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        join(*where)

    distributed._join = dying


def die_meeting() -> None:
    """The first process, which keeps the store, is killed before the others have met it."""
    from pretune.training.lifeline import Lifeline

    enter = Lifeline.__enter__

    def dying(self: Lifeline) -> Lifeline:
        if self.rank == 0:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return enter(self)

    Lifeline.__enter__ = dying  # type: ignore[method-assign]


def write_beside() -> None:
    """A checkpoint that is not the last waits, while it is written, for the next update."""
    from pretune.training.checkpoint import RunCheckpoints
    from pretune.training.loop import Trainer

    update, fill, steps = Trainer._update, RunCheckpoints._fill, [0]

    def counting(self: Trainer, batch: Any) -> Any:
        trouble = update(self, batch)
        steps[0] = self.history.steps
        return trouble

    def waiting(folder: Any, bundle: Any, tensors: Any, values: str) -> None:
        step = json.loads(values)["course"]["steps"]
        if step % 2 == 0 and step < 10:
            deadline = time.monotonic() + PATIENCE / 2
            while steps[0] <= step:
                assert time.monotonic() < deadline, "training waits for the write"
                time.sleep(0.001)
            with (folder.parent.parent / "beside.txt").open("a") as file:
                file.write("beside\n")
        fill(folder, bundle, tensors, values)

    Trainer._update = counting  # type: ignore[method-assign]
    RunCheckpoints._fill = staticmethod(waiting)  # type: ignore[method-assign]


def _in_third(act: Any) -> None:
    """Do something while the checkpoint of the third update is being written."""
    from pretune.training.checkpoint import RunCheckpoints

    fill = RunCheckpoints._fill

    def acting(folder: Any, bundle: Any, tensors: Any, values: str) -> None:
        if json.loads(values)["course"]["steps"] == 3:
            act()
        fill(folder, bundle, tensors, values)

    RunCheckpoints._fill = staticmethod(acting)  # type: ignore[method-assign]


def die_writing() -> None:
    """The main process is killed in its third checkpoint."""
    _in_third(lambda: os.kill(os.getpid(), signal.SIGKILL))


def full_disk() -> None:
    """The disk is full in the third checkpoint."""

    def refuse() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _in_third(refuse)


def hold() -> None:
    """Each process tells, before its second step, the bytes of the tensors that it holds."""
    from contextlib import contextmanager

    from pretune.training.distributed import World, local
    from pretune.training.loop import Trainer

    gradients, syncing, whole = Trainer.gradients, World.syncing, [0]

    def size(tensors: Any) -> int:
        own = [local(t) for t in tensors if t is not None]
        # A sparse gradient is added to a table of its dense size.
        return sum(t.numel() * t.element_size() for t in own)

    @contextmanager
    def looking(self: World, model: Any, *, last: bool) -> Any:
        with syncing(self, model, last=last):
            yield
        states = [m._get_fsdp_state() for m in model.modules() if hasattr(m, "_get_fsdp_state")]
        groups = [state._fsdp_param_group for state in states]
        for group in filter(None, groups) if not last else ():
            for own in group.fsdp_params:
                whole[0] += size([own.unsharded_accumulated_grad, own._unsharded_param.grad])

    def telling(self: Trainer, batch: Any) -> Any:
        whole[0] = 0
        found = gradients(self, batch)
        if self.history.steps == 1:
            moments = self.optimizer.adamw.state.values()
            replica = self.world._replica
            buckets = {} if replica is None else replica._get_ddp_logging_data()
            sizes = buckets.get("rebuilt_bucket_sizes") or buckets.get("bucket_sizes") or "0"
            held = {
                "rank": self.world.rank,
                "weights": size(self.model.parameters()),
                "gradients": whole[0] + size(p.grad for p in self.model.parameters()),
                "optimizer": size(own[k] for own in moments for k in ("exp_avg", "exp_avg_sq")),
                "average": 0 if self.average is None else size(self.average.tensors.values()),
                "buckets": sum(map(int, sizes.split(","))),
            }
            os.write(1, f"held {json.dumps(held)}\n".encode())
        return found

    Trainer.gradients = telling  # type: ignore[method-assign]
    World.syncing = looking  # type: ignore[method-assign]


CHANGES = {
    "hold": hold,
    "write_beside": write_beside,
    "die_writing": die_writing,
    "die_joining": die_joining,
    "die_meeting": die_meeting,
    "full_disk": full_disk,
    "poison": poison,
    "local_count": local_count,
    "callbacks": callbacks,
    "refuse": refuse,
    "fall_over": fall_over,
}


def die(after: float) -> None:
    """End this process as a full memory does, so many seconds after it has met the others."""
    from pretune.training.lifeline import Lifeline

    enter = Lifeline.__enter__

    def mortal(self: Lifeline) -> Lifeline:
        timer = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        return enter(self)

    Lifeline.__enter__ = mortal  # type: ignore[method-assign]


def act(
    work: str,
    what: Any,
    stop_at: int | None = None,
    change: str | None = None,
    killed: dict[str, float] | None = None,
) -> None:
    """Train, resume, or whichever it is, in this process.

    Args:
        work: `train`, `resume` or `either`.
        what: a recipe, or the folder of a run to resume.
        stop_at: the update at which a signal to stop comes.
        change: the name of a change in the code.
        killed: by ranks, the seconds after which they are killed.
    """
    from outcomes import StopAt

    from pretune.errors import OwnCodeError
    from pretune.recipe.recipe import Recipe
    from pretune.training import run
    from pretune.training.stop import Interrupted

    if change is not None:
        CHANGES[change]()
    if stop_at is not None:
        run.StopRequest = lambda say: StopAt(stop_at)  # type: ignore[assignment, misc]
    for rank, seconds in (killed or {}).items():
        if rank == os.environ["RANK"]:
            die(seconds)
    try:
        if work == "resume":
            run.resume(what, quiet=True)
        elif work == "train":
            run.train_recipe(Recipe.of(what), quiet=True)
        else:
            run.train_or_resume(Recipe.of(what), quiet=True)
    except Interrupted:
        if stop_at is None:
            raise
    except OwnCodeError:
        if change != "callbacks":
            raise


def forked(rank: int, size: int, port: int, log: str, question: dict[str, Any]) -> int:
    """One process of a group, as torchrun would start it."""
    assert len(os.listdir("/proc/self/task")) == 1, "not alone: forking is not sound"
    process = os.fork()
    if process:
        return process
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    code = 1
    try:
        act(**question)
        code = 0
    except PretuneError as error:  # as the command line shows it
        code = 2
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def codes_of(children: list[int]) -> list[int]:
    """How they ended; those that go on long after one has failed are ended."""
    deadline, codes = time.monotonic() + PATIENCE, dict.fromkeys(children)
    while None in codes.values():
        for child, code in codes.items():
            if code is None:
                found, status = os.waitpid(child, os.WNOHANG)
                codes[child] = os.waitstatus_to_exitcode(status) if found else None
        if any(codes.values()):
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            for child in (child for child, code in codes.items() if code is None):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [int(code or 0) for code in codes.values()]


def serve() -> None:
    """Answer until there are no more questions."""
    # What a training imports in the end, which takes longer than to train.

    import pretune.tasks.classification.classify
    import pretune.tasks.masked_lm.mask_lm
    import pretune.training.run
    import pretune.training.sharded  # noqa: F401

    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        size, port, log = asked.pop("size"), asked.pop("port"), asked.pop("log")
        children = [forked(rank, size, port, log, asked) for rank in range(size)]
        print(json.dumps(codes_of(children)), flush=True)


if __name__ == "__main__":
    serve()
