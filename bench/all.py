"""All benches in one run: a table in Markdown and a JSON file. `make bench` runs this.

    PRETUNE_DATA=FOLDER python bench/all.py [--isa avx2] [--only gpt mlm] [--out bench/results]
    PRETUNE_DATA=FOLDER python bench/all.py --base COMMIT [--rounds 3]

With `--base` nothing but pretune runs, in turns from this working tree and from a git worktree of
the commit, by the benches of this one: what was measured in a round is compared with the same round
of the base, and the median of these ratios is shown with the least and the largest. Above 1, this
tree is better. A bench that the base cannot run, because it has another shape inside, is named.

The sizes are small, so that all of it takes at most `--minutes`; what does not fit in is named as
well. The tables are worth something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import LIMITS, shown, times_better

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Job:
    """A bench, small enough for a run of all of them."""

    script: str
    size: str  # what is measured
    rounds: int | None = 3  # None: it takes no rounds


JOBS = {
    "gpt": Job("gpt.py", "--shape small --steps 60"),
    "gpt-wide": Job("gpt.py", "--shape wide --steps 3", 2),
    "finetune": Job("finetune.py", "--steps 3", 1),
    "mlm": Job("mlm.py", "--steps 2", 2),
    "inference": Job("inference.py", "--texts 24 --single 6", 2),
    "families": Job("families.py", "--steps 3 --texts 48 --no-memory", 1),
    "embed": Job("embed.py", "--sentences 300"),
    "generate": Job("generate.py", "--new-tokens 24 --modes greedy"),
    "translate": Job("translate.py", "--steps 5 --sentences 48"),
    "align": Job("align.py", "--shape small --part dpo --steps 2", 1),
    "startup": Job("startup.py", ""),
    "squad-features": Job("squad_features.py", "--limit 2000"),
    "load": Job("load.py", "", 1),
    "serve": Job("serve.py", "--parts classify generate --seconds 2 --texts 150 --writing 6", 1),
    "overhead": Job("overhead.py", "--epochs 0.1", None),
}


class Runner:
    """Runs benches one by one until the time is up.

    Args:
        options: of the command line.
        scratch: a folder for what they write.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.end = time.monotonic() + 60 * options.minutes
        self.missing: dict[str, str] = {}
        self.machine: dict[str, Any] = {}

    def run(self, name: str, source: Path, *more: str) -> list[dict[str, Any]]:
        """The rows of a bench that imports pretune from a folder; none if it cannot run."""
        job, left = JOBS[name], self.end - time.monotonic()
        if left <= 0:
            self.missing.setdefault(name, "the time was up")
            return []
        file = self.scratch / "figures.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, str(ROOT / "bench" / job.script), *job.size.split(), *more]
        command += ["--isa", self.options.isa, "--json", str(file)]
        paths = (str(source), os.environ.get("PYTHONPATH"))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        try:
            done = subprocess.run(
                command, env=environment, timeout=left, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            self.missing.setdefault(name, "the time was up")
        else:
            if done.returncode:
                why = (done.stderr or done.stdout).strip().splitlines() or ["it failed"]
                self.missing.setdefault(name, why[-1])
                return []
        # A bench that was cut off leaves what it had measured.
        if not file.is_file():
            return []
        written = json.loads(file.read_text(encoding="utf-8"))
        self.machine = written["machine"]
        rows: list[dict[str, Any]] = written["rows"]
        return rows


def beside_peers(runner: Runner, names: list[str]) -> list[dict[str, Any]]:
    """All engines of each bench."""
    rows = []
    for name in names:
        began, rounds = time.monotonic(), JOBS[name].rounds
        settings = [] if rounds is None else ["--rounds", str(runner.options.rounds or rounds)]
        rows += [{"bench": name, **row} for row in runner.run(name, ROOT / "src", *settings)]
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def beside_base(runner: Runner, names: list[str], base: Path) -> list[dict[str, Any]]:
    """Pretune of this tree and of another one, in turns; the engines are `this` and `base`."""
    values: dict[tuple[str, str, str, bool], dict[str, list[float]]] = {}
    for number in range(runner.options.rounds or 3):
        for name in names:
            settings = [] if JOBS[name].rounds is None else ["--rounds", "1"]
            trees = [("this", ROOT / "src"), ("base", base / "src")]
            both = {
                side: runner.run(name, source, "--ours", *settings)
                for side, source in (trees if number % 2 == 0 else reversed(trees))
                if name not in runner.missing
            }
            # Only what both have measured in this round is a pair.
            sides = {
                side: {
                    (name, row["what"], row["unit"], row["lower_is_better"], row["engine"]): row
                    for row in rows
                    if row["engine"].startswith("pretune")
                }
                for side, rows in both.items()
            }
            shared = sides.get("this", {}).keys() & sides.get("base", {}).keys()
            for key in [key for key in sides.get("this", {}) if key in shared]:
                *place, engine = key
                named = f"{place[1]}: {engine}" if engine != "pretune" else place[1]
                kept = values.setdefault((place[0], named, place[2], place[3]), {})
                for side, rows in sides.items():
                    middle = statistics.median(rows[key]["values"])
                    kept.setdefault(side, []).append(middle)
            print(f"round {number + 1}, {name}", file=sys.stderr, flush=True)
    return [
        {
            "bench": name,
            "what": what,
            "unit": unit,
            "engine": side,
            "ours": side == "this",
            "lower_is_better": lower,
            "values": each,
        }
        for (name, what, unit, lower), sides in values.items()
        for side, each in sides.items()
    ]


def markdown(rows: list[dict[str, Any]], runner: Runner, base: str | None) -> str:
    """The table, with the machine above and what is missing below it."""
    lines = [f"- {line}" for line in shown(runner.machine).splitlines()] if runner.machine else []
    if base:
        lines.append(f"- beside commit {base}: medians of rounds that take turns")
    header = "| bench | what | engine | median | from – to | pretune is |"
    lines += ["", header, "|---|---|---|---:|---:|---:|"]
    for row in rows:
        ours = next(r for r in rows if r["ours"] and _place(r) == _place(row))
        cells = [row["bench"], row["what"], row["engine"], *_figures(row), _ratio(ours, row)]
        lines.append("| " + " | ".join(cells) + " |")
    for name, why in runner.missing.items():
        lines += ["", f"Not (whole) here: {name}: {why}"]
    return "\n".join(lines) + "\n"


def _place(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["bench"], row["what"], row["unit"]


def _figures(row: dict[str, Any]) -> tuple[str, str]:
    values = row["values"]
    digits = 0 if min(values) >= 1000 else 1 if min(values) >= 10 else 3
    low, high = (f"{end:,.{digits}f}" for end in (min(values), max(values)))
    middle = f"{statistics.median(values):,.{digits}f} {row['unit']}"
    return middle, f"{low} – {high}" if low != high else ""


def _ratio(ours: dict[str, Any], row: dict[str, Any]) -> str:
    """The median of the rounds' ratios, with the least and the largest."""
    if row["ours"]:
        return ""
    pairs = zip(ours["values"], row["values"], strict=False)
    lower = row["lower_is_better"]
    ratios = sorted(times_better(own, other, lower=lower) for own, other in pairs)
    spread = f" ({ratios[0]:.2f} – {ratios[-1]:.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}x{spread}"


@contextmanager
def worktree(commit: str, scratch: Path) -> Iterator[Path]:
    """A git worktree of a commit, in a folder; afterwards it is gone."""
    folder = scratch / "base"
    git = ["git", "-C", str(ROOT)]
    added = [*git, "worktree", "add", "--quiet", "--detach", str(folder), commit]
    done = subprocess.run(added, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"--base {commit}: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        removed = [*git, "worktree", "remove", "--force", str(folder)]
        subprocess.run(removed, capture_output=True, check=False)


def main() -> None:
    """Measure everything and write the two files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--isa", choices=("native", *LIMITS), default="native")
    parser.add_argument("--base", metavar="COMMIT", help="compare with it, without peers")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, help="of every bench; default: as it needs")
    parser.add_argument("--minutes", type=float, default=15, help="of all benches together")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    options = parser.parse_args()
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with the data sets of the benches")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        runner = Runner(options, Path(place))
        if options.base:
            with worktree(options.base, Path(place)) as base:
                rows = beside_base(runner, options.only, base)
        else:
            rows = beside_peers(runner, options.only)
    # Under a name of their own for each way of running, so that one does not overwrite the other.
    name = "-".join([options.isa, *(["base"] if options.base else [])])
    options.out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows, runner, options.base)
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    figures = {"machine": runner.machine, "base": options.base, "rows": rows}
    figures["missing"] = runner.missing
    (options.out / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    print(text)
    print(f"{time.monotonic() - began:.0f} s; written: {options.out / name}.md and .json")


if __name__ == "__main__":
    main()
