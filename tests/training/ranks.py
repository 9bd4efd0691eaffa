"""Starts groups of processes cheaply: imports everything once, and forks for each.

Speaks JSON lines: what to do, answered by how each process ended. A child is forked before torch
computed anything and while there is one thread, so that it is as good as a fresh interpreter (tests
that forked from pytest itself stood still now and then).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

#: Seconds until a group is taken to hang.
PATIENCE = 120.0


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


def act(work: str, what: Any, stop_at: int | None, change: str | None) -> None:
    """Train or resume, in this process."""
    from outcomes import StopAt

    from pretune.recipe.recipe import Recipe
    from pretune.training import run
    from pretune.training.run import resume, train_recipe
    from pretune.training.stop import Interrupted

    if change is not None:
        {"poison": poison, "local_count": local_count}[change]()
    if stop_at is not None:
        run.StopRequest = lambda say: StopAt(stop_at)  # type: ignore[assignment, misc]
    try:
        train_recipe(Recipe.of(what), quiet=True) if work == "train" else resume(what, quiet=True)
    except Interrupted:
        if stop_at is None:
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
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


def codes_of(children: list[int]) -> list[int]:
    """How they ended; after too long, or when one failed, the others are ended."""
    deadline, codes = time.monotonic() + PATIENCE, dict.fromkeys(children)
    while None in codes.values():
        for child, code in codes.items():
            if code is None:
                found, status = os.waitpid(child, os.WNOHANG)
                codes[child] = os.waitstatus_to_exitcode(status) if found else None
        if time.monotonic() > deadline or any(codes.values()):
            time.sleep(1.0)
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
