"""Where the time of a fine-tuning step goes, for pretune and for transformers' Trainer.

    PRETUNE_DATA=FOLDER python bench/where.py

Ten updates of the MRPC fine-tuning of `bench/finetune.py` under the profiler; each operation's own
time, in milliseconds an update.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from clock import WARM_UP
from finetune import OURS, prepare
from machine import parse
from peer import PADDINGS
from torch.profiler import ProfilerActivity, profile

UPDATES = 10

#: What an operation is for, by what its name holds; the first that fits counts.
KINDS = (
    ("matrix products of the layers", ("linear_pointwise", "addmm", "aten::mm")),
    ("attention", ("bmm", "softmax", "masked_fill", "scaled_dot", "flash")),
    ("dropout", ("dropout", "bernoulli")),
    ("GELU", ("gelu",)),
    ("LayerNorm", ("layer_norm",)),
    ("AdamW and clipping", ("adamw", "vector_norm", "foreach", "optimizer")),
    ("lookup tables", ("embedding", "index_add")),
    ("moving and clearing memory", ("copy", "fill", "cat", "index", "scatter", "gather", "zero")),
)


def kind_of(name: str) -> str:
    if name == "aten::ge":  # the comparison that makes a mask
        return "dropout"
    lowered = name.lower()
    for kind, parts in KINDS:
        if any(part in lowered for part in parts):
            return kind
    return "everything else"


def main() -> None:
    """Profile each engine and print a table."""
    options = parse(argparse.ArgumentParser(description=__doc__))
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with mrpc/train.tsv and mrpc/dev.tsv")
    data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
    table: dict[str, dict[str, float]] = {}
    engines = (OURS,) if options.ours else (OURS, *PADDINGS)
    for engine in engines:
        run = prepare(engine, data, UPDATES, "float32")
        run()  # kernels compiled, memory touched
        with profile(activities=[ProfilerActivity.CPU]) as found:
            run()
        for event in found.key_averages():
            row = table.setdefault(kind_of(event.key), dict.fromkeys(engines, 0.0))
            row[engine] += event.self_cpu_time_total / 1000 / (UPDATES + WARM_UP)
    print(f"{'milliseconds an update':<32}" + "".join(f"{engine:>10}" for engine in engines))
    for kind in (*(kind for kind, _ in KINDS), "everything else"):
        row = table.get(kind, dict.fromkeys(engines, 0.0))
        print(f"{kind:<32}" + "".join(f"{row[engine]:>10.0f}" for engine in engines))
    total = {engine: sum(row[engine] for row in table.values()) for engine in engines}
    print(f"{'all':<32}" + "".join(f"{total[engine]:>10.0f}" for engine in engines))


if __name__ == "__main__":
    main()
