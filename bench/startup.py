"""CPU time to start: `pretune --help`, and `pretune predict` of one text beyond importing torch.

    python bench/startup.py [--rounds 7]

Every command is a process of its own. The commands take turns, so that what else the machine does
falls on all alike; the medians are shown. The model is a fine-tuned MiniLM.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, table

#: The commands that are measured, and shown by these names.
HELP, PREDICT = "pretune --help", "pretune predict RUN TEXT"
#: What every use of a model imports: the floor below `predict`.
FLOOR = ["-c", "import torch, tokenizers"]


def cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train_model(folder: Path) -> Path:
    """A run of one update: whatever its weights are, starting takes the same time."""
    data = folder / "data.tsv"
    rows = [f"a {word} film\t{word}" for word in ("good", "bad") for _ in range(4)]
    data.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    run = folder / "run"
    settings = ["model.from=minilm", "train.max_steps=1", "train.batch_size=4", f"output={run}"]
    cpu_seconds(["-m", "pretune", "train", str(data), *settings, "--quiet"])
    return run


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parse(parser)
    with tempfile.TemporaryDirectory() as folder:
        run = train_model(Path(folder))
        commands = {
            HELP: ["-m", "pretune", "--help"],
            PREDICT: ["-m", "pretune", "predict", str(run), "a good film"],
            "import torch, tokenizers": FLOOR,
            "import transformers": ["-c", "import transformers, torch, transformers.models.bert"],
        }
        times: dict[str, list[float]] = {command: [] for command in commands}
        # The first round fills the caches of the disk and of Python, and is not counted.
        for number in range(options.rounds + 1):
            for command, arguments in commands.items():
                seconds = cpu_seconds(arguments)
                if number:
                    times[command].append(seconds)
    pairs = zip(times[PREDICT], times["import torch, tokenizers"], strict=True)
    beyond = {PREDICT: [own - floor for own, floor in pairs]}
    helped = {HELP: times.pop(HELP)}
    print("\n" + table("start: help", helped, HELP, "CPU s", lower=True, digits=2))
    print("\n" + table("start: one text", times, PREDICT, "CPU s", lower=True, digits=2))
    print("\n" + table("start: beyond torch", beyond, PREDICT, "CPU s", lower=True, digits=2))


if __name__ == "__main__":
    main()
