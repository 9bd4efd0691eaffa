"""Sentence vectors: pretune beside transformers with padding and mean pooling, in one process.

    PRETUNE_DATA=... python bench/embed.py

The same MiniLM, the same sentences (sst2), the same recipe (mean over the tokens, length 1), and
both sides tokenize. transformers pads each batch to its longest sentence, once in the order of the
file and once sorted by length, as sentence-transformers does it. Rounds alternate; the ratio is of
the medians.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, table

from pretune.bundle.bundle import load
from pretune.checkpoints.source import find_source
from pretune.data.readers.files import read
from pretune.inference.embed import Embedder


def padded(model: Any, tokenizer: Any, texts: list[str], size: int, *, by_length: bool) -> Any:
    """`[N, hidden]` by transformers."""
    order = list(range(len(texts)))
    if by_length:
        order.sort(key=lambda i: -len(texts[i]))
    found = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            which = order[start : start + size]
            inputs = tokenizer(
                [texts[i] for i in which], padding=True, truncation=True, return_tensors="pt"
            )
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            found[which] = F.normalize((hidden * mask).sum(1) / mask.sum(1))
    return found.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32, help="of transformers")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser)
    from transformers import AutoModel, AutoTokenizer

    records = read(Path(os.environ["PRETUNE_DATA"]) / "sst2" / "train.tsv")
    texts = [records.text(row, "sentence") for row in range(min(arguments.sentences, len(records)))]
    folder = find_source("minilm")
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    embedder = Embedder(load("minilm"), device="cpu")
    size = arguments.batch_size
    sides: dict[str, Callable[[], Any]] = {
        "pretune": lambda: embedder.embed(texts),
        "transformers": lambda: padded(model, tokenizer, texts, size, by_length=False),
        "transformers, sorted": lambda: padded(model, tokenizer, texts, size, by_length=True),
    }
    if arguments.ours:
        sides = {"pretune": sides["pretune"]}
    vectors = {name: side() for name, side in sides.items()}  # also the warm-up
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            rates[name].append(len(texts) / (time.perf_counter() - start))
    print("\n" + table(f"embed {len(texts):,} sentences", rates, "pretune", "sentences/s"))
    apart = max(float(np.abs(each - vectors["pretune"]).max()) for each in vectors.values())
    print(f"vectors are at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
