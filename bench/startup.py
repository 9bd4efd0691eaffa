"""CPU time to start: `pretune --help`, and `pretune predict` of one text beyond importing torch.

    python bench/startup.py [--base OTHER/src] [--rounds 7]

Every command is a process of its own. The commands take turns, so that what else the machine does
falls on all alike; the medians are shown. With --base the same commands run from another checkout,
too. The model is a fine-tuned MiniLM.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"
#: What every use of a model imports: the floor below `predict`.
FLOOR = ["-c", "import torch, tokenizers"]


def cpu_seconds(arguments: Sequence[str], source: Path) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
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
    cpu_seconds(["-m", "pretune", "train", str(data), *settings, "--quiet"], SOURCE)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="the src folder of another checkout")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = train_model(Path(folder))
        commands = {
            "import torch, tokenizers": FLOOR,
            "import transformers": ["-c", "import transformers, torch, transformers.models.bert"],
            "pretune --help": ["-m", "pretune", "--help"],
            "pretune predict RUN TEXT": ["-m", "pretune", "predict", str(run), "a good film"],
        }
        sources = {"this": SOURCE, **({"base": options.base} if options.base else {})}
        times: dict[tuple[str, str], list[float]] = {}
        # The first round fills the caches of the disk and of Python, and is not counted.
        for number in range(options.rounds + 1):
            for command, arguments in commands.items():
                for name, source in sources.items():
                    seconds = cpu_seconds(arguments, source)
                    if number:
                        times.setdefault((command, name), []).append(seconds)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(f"{'CPU seconds, median':<40}" + "".join(f"{name:>10}" for name in sources))
    for command in commands:
        print(f"{command:<40}" + "".join(f"{medians[command, name]:10.2f}" for name in sources))
    beyond = [
        medians["pretune predict RUN TEXT", name] - medians["import torch, tokenizers", name]
        for name in sources
    ]
    print(
        f"{'predict beyond import torch, tokenizers':<40}" + "".join(f"{b:10.2f}" for b in beyond)
    )


if __name__ == "__main__":
    main()
