"""The same fine-tuning by pretune and by transformers' Trainer: examples a second, and memory.

MRPC, MiniLM (22M parameters), batch 32, at most 128 tokens, AdamW, dropout 0.1, in float32 or, with
`--precision bf16`, both with bf16 autocast: the same work in the same process, in turns. The
Trainer runs three ways: every example padded to 128 tokens (`max`, the way of most tutorials), to
the longest of its batch (`dynamic`), and in batches of similar length (`length`).

    PRETUNE_DATA=FOLDER python bench/finetune.py [--steps 115] [--rounds 2] [--precision bf16]

Memory is measured in a process of its own for each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import WARM_UP, in_turns, peak_of, prepared, run_ours, run_trainer, say_peak
from machine import parse, table
from peer import PADDINGS, build_trainer

OURS = "pretune"
ENGINES = (OURS, *PADDINGS)
#: Examples an update, of every one but an epoch's last.
BATCH = 32


def recipe_of(data: Path, steps: int, precision: str = "float32") -> Any:
    """What is trained, as we say it."""
    from pretune.recipe.recipe import Recipe

    return Recipe.load(
        "mrpc",
        {
            "data.train": str(data / "train.tsv"),
            "data.validation": None,
            "model.from": "minilm",
            "train.max_steps": WARM_UP + steps,
            "train.precision": precision,
        },
    )


def run_peer(data: Path, padding: str, steps: int, precision: str) -> Callable[[], float]:
    """The same for transformers' Trainer."""
    trainer = build_trainer(data, padding, max_steps=WARM_UP + steps, bf16=precision == "bf16")
    return lambda: run_trainer(trainer, steps, BATCH)


def prepare(engine: str, data: Path, steps: int, precision: str) -> Callable[[], float]:
    if engine == OURS:
        return run_ours(recipe_of(data, steps, precision), steps, tokens=False)
    return run_peer(data, engine, steps, precision)


def useful_flops(data: Path) -> float:
    """Floating-point operations of an average example's forward and backward pass.

    Matrix products and attention over the tokens that there are, counted by `pretune inspect`'s
    rules; the last layer only where it is read, as we compute it. GELU, LayerNorm, dropout, softmax
    and AdamW count for nothing.
    """
    from pretune.experiments.costs import count_flops
    from pretune.models.backbone import backbone_of

    _, bundle, features = prepared(recipe_of(data, 1))
    model = bundle.model
    config = backbone_of(model).config
    hidden, inner = config.size("hidden_size"), config.size("intermediate_size")
    total = 0.0
    for length in features.lengths.tolist():
        whole = count_flops(model, length).per_sequence
        # In the last layer only the first token asks (query, output, the two of the inner layer).
        unread = 2 * (2 * hidden * hidden + 2 * hidden * inner) * (length - 1)
        unread += 4 * hidden * length * (length - 1)
        total += 3 * (whole - unread)
    return total / len(features)


def product_peak(dtype: torch.dtype) -> float:
    """The most floating-point operations a second of a matrix product on this machine."""
    from pretune.models import ops

    best = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
        for size in (1024, 2048, 3072):
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            for _ in range(12):
                start = time.perf_counter()
                ops.linear(a, b, keep_bf16=True)
                best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def peaks() -> dict[torch.dtype, float]:
    """Of both types of number."""
    return {dtype: product_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=111, help="updates timed; 111 + 4 is an epoch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=ENGINES, help="run one engine once and print its memory")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with mrpc/train.tsv and mrpc/dev.tsv")
    data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
    if options.only:
        prepare(options.only, data, options.steps, options.precision)()
        say_peak()
        return
    before = peaks()
    how = data, options.steps, options.precision
    engines = ENGINES[:1] if options.ours else ENGINES
    names = {e: e if e == OURS else f"Trainer, {e}" for e in engines}
    speed = in_turns({names[e]: prepare(e, *how) for e in engines}, options.rounds)
    what = f"MRPC, {options.precision}"
    print("\n" + table(what, speed, OURS, "examples/s", digits=1))
    settings = ("--steps", str(min(options.steps, 40)), "--precision", options.precision)
    memory = {names[e]: [peak_of(__file__, *settings, "--only", e)] for e in engines}
    print("\n" + table(f"{what}: memory", memory, OURS, "MiB", lower=True))
    flops, after = useful_flops(data), peaks()
    rate = statistics.median(speed[OURS]) * flops
    print(f"\nuseful work: {flops / 1e9:.2f} GFLOP an example, so {rate / 1e9:.0f} GFLOP/s")
    for dtype, found in after.items():
        # The machine may have had other work at one of the two times.
        peak = max(found, before[dtype])
        print(f"{rate / peak:.0%} of {peak / 1e9:.0f} GFLOP/s, a matrix product of {dtype}")


if __name__ == "__main__":
    main()
