"""Break the code on purpose, one slip at a time, and see whether the tests of its room notice.

A mutant that no test notices ("survived") names something that nothing checks. The faults are made
in a copy of `src`, which the tests import by way of PYTHONPATH: the checkout is never written to.

    python tests/mutants/run_mutants.py                  all mutants, one after the other
    python tests/mutants/run_mutants.py --only ID        one of them; may be repeated
    python tests/mutants/run_mutants.py --list           what is broken, and who should notice
"""

from __future__ import annotations

import argparse
import compileall
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import cache_from_source
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
#: How many mutants may survive.
SPARE = 2
#: Exit status of pytest if tests fail; others mean that it could not run them.
TESTS_FAILED = 1
#: Seconds that the tests of one mutant may take: a fault can make a loop endless.
PATIENCE = 900
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Outcome:
    """How a mutant fared.

    Attributes:
        mutant: the fault.
        state: "killed", "survived", or "unclear" where the tests could not tell.
        note: the test that failed first, or why the outcome is unclear.
        seconds: that it took.
    """

    mutant: Mutant
    state: str
    note: str
    seconds: float


def copy_source(folder: Path) -> Path:
    """Copy `src` into a folder and compile it; returns the copy."""
    copy = folder / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(copy, quiet=2)
    return copy


def run_tests(
    source: Path, tests: Sequence[str], stop: str = "--maxfail=1"
) -> tuple[int | None, str]:
    """Run tests with the modules of `source`.

    Args:
        source: a folder that holds `pretune`.
        tests: files below `tests`, or the names of single tests.
        stop: pytest's option that says after how many failures to stop.

    Returns:
        the exit status, None if they took longer than `PATIENCE`; and what pytest printed.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)]),
        # Neither the copy nor the checkout gets compiled files of broken code.
        "PYTHONDONTWRITEBYTECODE": "1",
        # Nor does Hypothesis keep the examples that broken code fails.
        "HYPOTHESIS_STORAGE_DIRECTORY": str(source.parent / "hypothesis"),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "500",
    }
    options = [stop, "-q", "-rfE", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "--hypothesis-seed=0", *tests]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout


def examine(mutant: Mutant, source: Path) -> Outcome:
    """Make a fault in a copy of the code, run the tests, and mend the copy."""
    began = time.monotonic()
    path = source / "pretune" / mutant.file
    right = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutant.applied(right), encoding="utf-8")
    except ValueError as error:
        return Outcome(mutant, "unclear", str(error), 0.0)
    # A compiled file could pass for that of the broken one: times are compared by the second.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
    try:
        status, text = run_tests(source, [f"tests/{name}" for name in mutant.tests])
    finally:
        path.write_text(right, encoding="utf-8")
    state, note = judged(status, text)
    return Outcome(mutant, state, note, time.monotonic() - began)


def judged(status: int | None, text: str) -> tuple[str, str]:
    """Judge a run of the tests by pytest's exit status and text: the state, and a note on it."""
    if status is None:
        return "unclear", f"the tests took more than {PATIENCE} s"
    if status == 0:
        return "survived", ""
    failed = _FAILED.search(text)
    if status != TESTS_FAILED or failed is None:
        last = (text.strip() or "nothing").splitlines()[-1]
        return "unclear", f"pytest exited with {status}: {last}"
    return "killed", failed[1]


def confirmed(outcomes: Sequence[Outcome], source: Path) -> list[Outcome]:
    """Run the tests that failed once more, without any fault: one that fails too tells nothing."""
    names = sorted({outcome.note for outcome in outcomes if outcome.state == "killed"})
    text = run_tests(source, names, "--maxfail=0")[1] if names else ""
    failed = set(_FAILED.findall(text))
    return [
        replace(outcome, state="unclear", note=f"{outcome.note} fails without the fault too")
        if outcome.state == "killed" and outcome.note in failed
        else outcome
        for outcome in outcomes
    ]


def examine_all(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Examine mutants, `jobs` at a time, and print each outcome as it is known."""
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="pretune-mutants-") as place:
        # Each job breaks and mends a copy of its own.
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copies.put(copy_source(Path(place) / str(number)))

        def work(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                return examine(mutant, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            for outcome in pool.map(work, mutants):
                line = f"{outcome.state:9}{outcome.mutant.id}  ({outcome.seconds:.0f} s)"
                print(f"{line}  {outcome.note}".rstrip(), flush=True)
                outcomes.append(outcome)
        return confirmed(outcomes, copies.get())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    summary, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    known = [mutant.id for mutant in MUTANTS]
    parser.add_argument(
        "--only",
        metavar="ID",
        action="append",
        choices=known,
        default=[],
        help="examine this mutant; may be repeated (all)",
    )
    parser.add_argument("--list", action="store_true", help="list the mutants, and stop")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (1)")
    return parser.parse_args()


def main() -> int:
    """Run the command line; returns 1 if more mutants survived than may."""
    arguments = parse_arguments()
    mutants = [m for m in MUTANTS if not arguments.only or m.id in arguments.only]
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.id}\n    {mutant.file}\n    tests/{' tests/'.join(mutant.tests)}")
        return 0
    outcomes = examine_all(mutants, max(1, arguments.jobs))
    killed = sum(outcome.state == "killed" for outcome in outcomes)
    for outcome in outcomes:
        if outcome.state != "killed":
            print(f"not killed: {outcome.mutant.id}  {outcome.note}".rstrip())
    print(f"{killed} of {len(outcomes)} killed")
    # Asked for single ones, none of them may survive.
    spare = 0 if arguments.only else SPARE
    return 0 if killed >= len(outcomes) - spare else 1


if __name__ == "__main__":
    sys.exit(main())
