"""Tokens a second, and memory, of masked-LM pre-training, beside transformers' Trainer.

    PRETUNE_DATA=FOLDER python bench/mlm.py [--shape small] [--steps 20] [--precision bf16]

WikiText-2 in full blocks of 128 tokens, 32 a batch: the same blocks for both, none of them padded,
which leaves the Trainer nothing to waste on padding. 15 % of the tokens masked, dropout 0.1, AdamW,
in float32 or, with `--precision bf16`, both with bf16 autocast. Shape `small` is 4 layers of 256;
`base` is BERT-base. The Trainer has `BertForMaskedLM` and `DataCollatorForLanguageModeling`. Memory
is that of a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))
from clock import (
    WARM_UP,
    arguments,
    in_turns,
    peak_of,
    prepared,
    run_ours,
    run_trainer,
    say_peak,
)
from machine import parse, table

OURS, PEER = "pretune", "transformers' Trainer"
BATCH, BLOCK = 32, 128
SHAPES = {
    "small": {
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "base": {},
}


def recipe_of(text: Path, shape: str, steps: int, precision: str) -> Any:
    """What is trained, as we say it."""
    from pretune.recipe.recipe import Recipe

    return Recipe.of(
        {
            "task": {"name": "mask_lm", "max_length": BLOCK},
            "model": {"from": "bert-base", "config": SHAPES[shape], "dropout": 0.1},
            "data": {"train": str(text), "validation": None, "max_chars": 10**7},
            "train": {
                "batch_size": BATCH,
                "max_steps": WARM_UP + steps,
                "learning_rate": 1e-4,
                "weight_decay": 0.01,
                "precision": precision,
            },
            "output": str(text.parent / "run"),
        },
        "bench",
    )


def run_peer(text: Path, shape: str, steps: int, precision: str) -> Callable[[], float]:
    """The same for transformers' Trainer, with the blocks of ours."""
    import transformers
    from datasets import Dataset

    _, bundle, features = prepared(recipe_of(text, shape, 1, precision))
    starts = features.starts.tolist()
    blocks = [features.tokens[a:b].tolist() for a, b in pairwise(starts)]
    size = bundle.tokenizer.vocab_size
    with tempfile.TemporaryDirectory() as name:
        bundle.tokenizer.save(Path(name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    config = transformers.BertConfig(vocab_size=size, **SHAPES[shape])
    trainer = transformers.Trainer(
        model=transformers.BertForMaskedLM(config),
        args=arguments(
            BATCH,
            steps,
            learning_rate=1e-4,
            weight_decay=0.01,
            warmup_steps=0.1,
            bf16=precision == "bf16",
        ),
        train_dataset=Dataset.from_dict({"input_ids": blocks}),
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer),
    )
    tokens = BATCH * features.lengths.mean()
    return lambda: run_trainer(trainer, steps, tokens)


def run_pretune(text: Path, shape: str, steps: int, precision: str) -> Callable[[], float]:
    """Ours."""
    return run_ours(recipe_of(text, shape, steps, precision), steps, tokens=True)


RUNS = {OURS: run_pretune, PEER: run_peer}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=20, help="updates timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=RUNS, help="run one engine once and print its memory")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with wikitext-2/valid.txt")
    text = Path(os.environ["PRETUNE_DATA"]) / "wikitext-2" / "valid.txt"
    if options.only:
        RUNS[options.only](text, options.shape, options.steps, options.precision)()
        say_peak()
        return
    how = text, options.shape, options.steps, options.precision
    engines = [OURS] if options.ours else list(RUNS)
    found = in_turns({name: RUNS[name](*how) for name in engines}, options.rounds)
    what = f"masked LM, {options.shape}, {options.precision}"
    print("\n" + table(what, found, OURS, "tokens/s"))
    settings = ["--shape", options.shape, "--steps", str(options.steps)]
    settings += ["--precision", options.precision]
    peaks = {name: [peak_of(__file__, *settings, "--only", name)] for name in engines}
    print("\n" + table(f"{what}: memory", peaks, OURS, "MiB", lower=True))


if __name__ == "__main__":
    main()
