"""Loading a BERT-base of 438 MB by pretune and by transformers: seconds, and memory at its peak.

    python bench/load.py [--rounds 7] [--folder FOLDER]

Each measurement is a fresh process that has imported everything beforehand; the file is in the
system's cache. The engines take turns. `loaded` ends when the function returns. transformers maps
the file and looks at nothing: `used` ends when every weight has also been read once (a sum of each
parameter), which is what the first texts would wait for. pretune has read all of them before, as
it refuses weights that are not finite. `pretune.load` gives a tokenizer too, so transformers is
measured with and without `AutoTokenizer`.

Memory is the highest resident set (VmHWM, reset after the imports) less the resident set at that
time. Pages of the file that the process maps are counted, as soon as they have been read; Linux
only. The tokenizer is MiniLM's (the extra `minilm`): BERT-base's vocabulary, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, table

WEIGHTS = "model.safetensors"
OURS, WITH_TOKENIZER = "pretune", "transformers, with tokenizer"
ENGINES = (OURS, "transformers", "transformers, float32", WITH_TOKENIZER)
COPYING = "pretune, mmap=False"


def make_model(folder: Path) -> None:
    """BERT-base with random weights, as transformers saves it."""
    import transformers

    from pretune.checkpoints.source import find_source

    transformers.BertModel(transformers.BertConfig()).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (find_source("minilm") / name).is_file():
            shutil.copy(find_source("minilm") / name, folder)


def loader(engine: str, folder: Path) -> Callable[[], Any]:
    """What loads, with all imports done; it gives the model and whatever comes with it."""
    if engine in (OURS, COPYING):
        from pretune.bundle.bundle import load

        def ours() -> tuple[Any, ...]:
            bundle = load(folder, mmap=engine == OURS)
            return bundle.model, bundle

        return ours
    # By their own names: the Auto classes import a model's module when they first meet it.
    from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast  # noqa: F401

    options = {"dtype": "float32"} if engine.endswith("float32") else {}

    def theirs() -> tuple[Any, ...]:
        model = AutoModel.from_pretrained(folder, **options)
        tokenizer = None
        if engine == WITH_TOKENIZER:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return model, tokenizer

    return theirs


def resident(what: str) -> float:
    """`VmRSS`, or `VmHWM`, its highest value so far, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(what + ":"))
    return int(line.split()[1]) / 2**10


def measure(engine: str, folder: Path) -> dict[str, float]:
    """Load once in this process."""
    import torch

    load = loader(engine, folder)
    torch.ones(2**20).sum()  # the threads are there
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM starts again
    before, start = resident("VmRSS"), time.perf_counter()
    model, _rest = load()
    loaded = time.perf_counter() - start
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sum()
    used = time.perf_counter() - start
    return {"loaded": loaded, "used": used, "peak": resident("VmHWM") - before}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "pretune-bench-load"
    )
    parser.add_argument("--only", choices=(*ENGINES, COPYING), help="load once, print the figures")
    # A process that loads prints its figures alone, and has imported nothing else.
    if "--only" in sys.argv:
        options = parser.parse_args()
        print(json.dumps(measure(options.only, options.folder)))
        return
    options = parse(parser)
    if not (options.folder / WEIGHTS).is_file():
        make_model(options.folder)
    size = len((options.folder / WEIGHTS).read_bytes())  # now it is in the cache
    engines = (OURS, COPYING) if options.ours else (*ENGINES, COPYING)
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for number in range(options.rounds):
        for engine in list(found) if number % 2 == 0 else list(found)[::-1]:
            command = [sys.executable, __file__, "--folder", str(options.folder), "--only", engine]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[engine].append(json.loads(done.stdout.splitlines()[-1]))
    show(found, size)


def show(found: dict[str, list[dict[str, float]]], size: int) -> None:
    """Medians and spans of the seconds, and of the memory."""
    units = {"loaded": ("s", 3), "used": ("s", 3), "peak": ("MiB", 0)}
    for key, (unit, digits) in units.items():
        values = {engine: [each[key] for each in rounds] for engine, rounds in found.items()}
        what = f"{size / 1e6:,.0f} MB: {key}"
        print("\n" + table(what, values, OURS, unit, lower=True, digits=digits))


if __name__ == "__main__":
    main()
