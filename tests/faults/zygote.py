"""Starts `pretune` processes cheaply: imports everything once, and forks for each.

Speaks JSON lines: {"argv": [...], "log": PATH} is answered by the number of a new process, and
{"wait": NUMBER} by how it ended, as `subprocess` tells it. A child is forked before torch computed
anything and while there is one thread, so that it is as good as a fresh interpreter.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any


def stall(at: str, call: int, seconds: float, marker: str) -> None:
    """Make a call of a function `module:name` take long; the marker is there from then on."""
    module, _, name = at.partition(":")
    holder = importlib.import_module(module)
    original = getattr(holder, name)
    calls = itertools.count(1)

    def stalling(*args: Any, **options: Any) -> Any:
        if next(calls) == call:
            Path(marker).touch()
            time.sleep(seconds)
        return original(*args, **options)

    setattr(holder, name, stalling)


def forked(
    argv: list[str],
    log: str,
    largest: int | None = None,
    stalled: dict[str, Any] | None = None,
    streams: dict[str, str | None] | None = None,
) -> int:
    """A process that runs `pretune` with these arguments.

    Args:
        argv: what is typed after `pretune`.
        log: where its output goes.
        largest: it may write no file larger than so many bytes (RLIMIT_FSIZE).
        stalled: what `stall` is given.
        streams: files to write to instead of the log, by the number of the stream; None: it is
            closed.
    """
    assert len(os.listdir("/proc/self/task")) == 1, "not alone: forking is not sound"
    process = os.fork()
    if process:
        return process
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, file), (2, file)):
        os.dup2(source, descriptor)
    for number, path in (streams or {}).items():
        if path is None:
            os.close(int(number))
            setattr(sys, ("stdin", "stdout", "stderr")[int(number)], None)
        else:
            os.dup2(os.open(path, os.O_WRONLY), int(number))
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    if stalled is not None:
        stall(**stalled)
    sys.argv = ["pretune", *argv]
    from pretune.cli.app import main

    main()  # never returns
    os._exit(99)


def serve() -> None:
    """Answer until there are no more questions."""
    # What a training imports in the end: torch._dynamo alone, which every optimizer asks for, takes
    # as long as all the rest of a run of ours.

    import pretune.cli.app
    import pretune.cli.train
    import pretune.render.result_views
    import pretune.tasks.classification.classify
    import pretune.training.run  # noqa: F401

    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = forked(**asked)
        print(answer, flush=True)


if __name__ == "__main__":
    own = os.getpid()
    try:
        serve()
    except Exception:
        traceback.print_exc()
        if os.getpid() != own:
            os._exit(98)
        raise
