"""Training beside other busy processes: milliseconds an update, by how OpenMP's threads wait.

    PRETUNE_DATA=FOLDER python bench/busy.py
    PRETUNE_DATA=FOLDER python bench/busy.py --shape wide --steps 3 --rounds 5

Each way of waiting has a process of its own, since libgomp reads its settings when it is loaded.
All of them train the GPT of bench/gpt.py, a few updates at a time and in turns, first alone and
then beside one and two processes that only count. So whatever else the machine does falls on all
alike: compare figures of one column, and a machine that is not idle shows it in the first. The
yardstick is one thread alone: the half of a machine with two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

#: What decides how threads wait; all of it is left out unless a way sets it.
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
#: The yardstick.
HALF = "one thread"


def ways(threads: int) -> dict[str, dict[str, str]]:
    """The environment of each way of waiting."""
    from pretune.cli.app import SPINS

    several = {"OMP_NUM_THREADS": str(threads)}
    return {
        HALF: {"OMP_NUM_THREADS": "1"},
        f"{threads} threads, libgomp's own": several,
        f"... pretune: {SPINS:,} spins": {**several, "GOMP_SPINCOUNT": str(SPINS)},
        "... 1,000 spins": {**several, "GOMP_SPINCOUNT": "1000"},
        "... passive": {**several, "OMP_WAIT_POLICY": "passive"},
    }


def train(shape_name: str, steps: int) -> None:
    """Train some updates for each line of standard input, and print milliseconds an update."""
    import gpt
    from clock import run_ours

    shape = gpt.SHAPES[shape_name]
    book = Path(os.environ["PRETUNE_DATA"]) / "tiny-shakespeare" / "input.txt"
    text = book.read_text(encoding="utf-8")[:200_000]
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        (workspace / "text.txt").write_text(text, encoding="utf-8")
        gpt.read_ids(text, workspace)
        run = run_ours(gpt.recipe_of(workspace, shape, steps), steps, tokens=True)
        print("ready", flush=True)
        for _ in sys.stdin:
            print(1000 * shape.tokens / run(), flush=True)


@contextmanager
def worker(shape: str, steps: int, settings: dict[str, str]) -> Iterator[Any]:
    """A process that trains when it is asked to."""
    rest = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, __file__, "--worker", "--shape", shape, "--steps", str(steps)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process: Any = subprocess.Popen(command, env={**rest, **settings}, **pipes)
    try:
        process.stdout.readline()  # "ready"
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def counting(processes: int) -> Iterator[None]:
    """Some processes that keep a core busy each."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="small", help="of bench/gpt.py: small or wide")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--steps", type=int, default=10, help="updates in a turn, after a warm-up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", type=int, nargs="+", default=(0, 1, 2), help="busy processes")
    parser.add_argument("--only", nargs="*", default=(), help="ways that contain one of these")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.shape, options.steps)
        return
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with tiny-shakespeare/input.txt")
    chosen = {
        name: settings
        for name, settings in ways(options.threads).items()
        if not options.only or name == HALF or any(part in name for part in options.only)
    }
    times: dict[tuple[str, int], list[float]] = {}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(options.shape, options.steps, settings))
            for name, settings in chosen.items()
        }
        for _ in range(options.rounds):
            for others in options.others:
                with counting(others):
                    for name, process in workers.items():
                        print("go", file=process.stdin, flush=True)
                        taken = float(process.stdout.readline())
                        times.setdefault((name, others), []).append(taken)
                        print(f"{others} others, {name}: {taken:.1f} ms", file=sys.stderr)
    half = statistics.median(times[HALF, 0])
    print(f"{options.shape}, ms an update (times one thread alone)")
    print(f"{'':<28}" + "".join(f"{f'{n} others':>20}" for n in options.others))
    for name in chosen:
        medians = [statistics.median(times[name, others]) for others in options.others]
        print(f"{name:<28}" + "".join(f"{m:12.1f} ({m / half:4.1f}x)" for m in medians))


if __name__ == "__main__":
    main()
