"""Translation: target tokens a second in training, sentences a second in a search with 5 beams.

    PRETUNE_DATA=... python bench/translate.py
    PRETUNE_DATA=... python bench/translate.py --shape base --steps 10 --rounds 3
    PRETUNE_DATA=... python bench/translate.py --run runs/translate

Training stands beside `torch.nn.Transformer` with padding, as one would write it in an afternoon:
the same sizes, vocabulary, dropout, loss and optimizer; random batches of as many pairs, padded to
their longest on each side. The search stands beside transformers' `generate` with the very weights
(`MarianMTModel` opens what pretune saves): real sources, longest first, in padded batches of like
length, each translation of exactly as many tokens; with `--run`, a trained model that ends them
itself. The rounds take turns; the medians are compared.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from clock import WARM_UP, Clock, in_turns, prepared
from machine import parse, table
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pretune.bundle.bundle import Bundle, load, save
from pretune.decoding.continuations import Prompt
from pretune.decoding.decoding import Decoding
from pretune.decoding.writer import Writer
from pretune.models.families import preset
from pretune.models.layers import sinusoidal_positions
from pretune.recipe.recipe import Recipe
from pretune.tasks.losses import NEXT
from pretune.tasks.translation.rewriting import ROWS
from pretune.training.loop import Trainer

OURS = "pretune"
BEAMS = 5


class PlainTranslator(nn.Module):
    """PyTorch's encoder and decoder, one table for source, target and output."""

    places: Tensor

    def __init__(self, sizes: dict[str, Any], vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.width = sizes["d_model"]
        self.table = nn.Embedding(vocabulary, self.width)
        nn.init.normal_(self.table.weight, std=self.width**-0.5)
        self.register_buffer("places", sinusoidal_positions(256, self.width))
        self.drop = nn.Dropout(dropout)
        self.body = nn.Transformer(
            self.width,
            sizes["encoder_attention_heads"],
            sizes["encoder_layers"],
            sizes["decoder_layers"],
            sizes["encoder_ffn_dim"],
            dropout,
            batch_first=True,
        )

    def embedded(self, ids: Tensor) -> Tensor:
        """`[B, L, width]`."""
        x: Tensor = self.table(ids) * math.sqrt(self.width)
        embedded: Tensor = self.drop(x + self.places[: ids.shape[1]])
        return embedded

    def forward(self, source: Tensor, target: Tensor, labels: Tensor, pad: int) -> Tensor:
        """The mean of the smoothed cross-entropy; labels of padding are -100."""
        blind = source == pad
        later = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        hidden = self.body(
            self.embedded(source),
            self.embedded(target),
            tgt_mask=later,
            src_key_padding_mask=blind,
            memory_key_padding_mask=blind,
            tgt_key_padding_mask=labels == -100,
            tgt_is_causal=True,
        )
        logits = F.linear(hidden, self.table.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)


def recipe_of(folder: Path, shape: str, batch: int, steps: int) -> Recipe:
    """The built-in recipe, in batches of pairs."""
    return Recipe.load(
        "translate",
        {
            "data.train": f"{folder / 'train.de'},{folder / 'train.en'}",
            "data.validation": None,
            "model.from": f"transformer-{shape}",
            "model.dropout": 0.1,
            "train.batch_tokens": None,
            "train.batch_size": batch,
            "train.max_steps": WARM_UP + steps,
            "train.ema": None,
        },
    )


def run_ours(prepared: tuple[Any, Any, Any], recipe: Recipe, steps: int) -> Callable[[], float]:
    """What trains and gives target tokens a second."""
    task, bundle, features = prepared
    targets = float(np.mean([target for _, target in features.choices]))

    def run() -> float:
        clock = Clock()
        Trainer(task, bundle.model, features, options=recipe.train, should_stop=clock.tick).fit()
        return clock.rate(steps, (recipe.train.batch_size or 0) * targets)

    return run


def run_plain(features: Any, sizes: dict[str, Any], batch: int, steps: int) -> Callable[[], float]:
    """The same for the plain loop."""
    pad = int(features.tokens.max()) + 1
    pairs = []
    for i, (source, target) in enumerate(features.choices):
        start = features.starts[i]
        ids = torch.from_numpy(features.tokens[start : start + source + target].astype(np.int64))
        labels = torch.from_numpy(features.targets[NEXT][start + source : start + source + target])
        pairs.append((ids[:source], ids[source:], labels))
    torch.manual_seed(0)
    model = PlainTranslator(sizes, pad + 1, 0.1).train()
    each = float(np.mean([len(labels) for _, _, labels in pairs]))

    def run() -> float:
        clock = Clock()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        for _ in range(WARM_UP + steps):
            chosen = [pairs[i] for i in torch.randint(len(pairs), (batch,)).tolist()]
            source, target, labels = (
                pad_sequence(list(side), batch_first=True, padding_value=fill)
                for side, fill in zip(zip(*chosen, strict=True), (pad, pad, -100), strict=True)
            )
            optimizer.zero_grad(set_to_none=True)
            model(source, target, labels, pad).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            clock.tick()
        return clock.rate(steps, batch * each)

    return run


def search_ours(bundle: Bundle, sources: list[list[int]], count: int | None) -> Callable[[], float]:
    """What translates, and gives sentences a second."""
    end = bundle.backbone.config.eos_token_id  # type: ignore[attr-defined]
    most = {"max_new_tokens": count or 60}
    ends = {"stop_tokens": ()} if count else {}
    decoding = Decoding(temperature=0, top_p=1.0, beams=BEAMS, **most, **ends)  # type: ignore[arg-type]
    writer = Writer(
        bundle.model.eval(),  # type: ignore[arg-type]
        bundle.tokenizer,
        device=torch.device("cpu"),
        batch_size=ROWS,
        stop_tokens=[end],
    )

    def run() -> float:
        start = time.perf_counter()
        writer.write([Prompt((), ids) for ids in sources], decoding)
        return len(sources) / (time.perf_counter() - start)

    return run


def search_theirs(
    bundle: Bundle, sources: list[list[int]], count: int | None
) -> Callable[[], float]:
    """The same by transformers."""
    with tempfile.TemporaryDirectory() as name:
        save(bundle, Path(name))
        model = transformers.MarianMTModel.from_pretrained(name).eval()
    model.generation_config.forced_eos_token_id = None
    pad, size = model.config.pad_token_id, ROWS // BEAMS
    tokens = {"max_new_tokens": count or 60, "min_new_tokens": count}

    def run() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for at in range(0, len(sources), size):
                batch = [torch.tensor(ids) for ids in sources[at : at + size]]
                ids = pad_sequence(batch, batch_first=True, padding_value=pad)
                lengths = torch.tensor([len(one) for one in batch])
                seen = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
                model.generate(ids, attention_mask=seen, num_beams=BEAMS, **tokens)
        return len(sources) / (time.perf_counter() - start)

    return run


def sources_of(bundle: Bundle, folder: Path, count: int) -> list[list[int]]:
    """Sentences of the validation data in tokens, longest first."""
    lines = (folder / "val.de").read_text(encoding="utf-8").splitlines()[:count]
    ids = [encoded.ids for encoded in bundle.tokenizer.encode(lines)]
    return sorted(ids, key=len, reverse=True)


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("small", "base"), default="small")
    parser.add_argument("--batch", type=int, default=64, help="pairs an update")
    parser.add_argument("--steps", type=int, default=30, help="updates timed")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=16, help="of each translation")
    parser.add_argument("--run", help="a trained model to search with, which ends translations")
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with multi30k-en-de/train.de, train.en and val.de")
    folder = Path(os.environ["PRETUNE_DATA"]) / "multi30k-en-de"
    transformers.logging.set_verbosity_error()
    recipe = recipe_of(folder, options.shape, options.batch, options.steps)
    made = prepared(recipe)
    sizes = preset(recipe.model.source) or {}
    runs = {OURS: run_ours(made, recipe, options.steps)}
    if not options.ours:
        plain = run_plain(made[2], sizes, options.batch, options.steps)
        runs["torch.nn.Transformer, padded"] = plain
    if options.steps:
        found = in_turns(runs, options.rounds)
        print(
            "\n" + table(f"translation, {options.batch} pairs an update", found, OURS, "tokens/s")
        )
    bundle, count = (load(options.run), None) if options.run else (made[1], options.tokens)
    sources = sources_of(bundle, folder, options.sentences)
    runs = {OURS: search_ours(bundle, sources, count)}
    if not options.ours:
        runs["transformers' generate"] = search_theirs(bundle, sources, count)
    if options.sentences:
        found = in_turns(runs, options.rounds)
        print("\n" + table(f"search with {BEAMS} beams", found, OURS, "sent./s", digits=1))


if __name__ == "__main__":
    main()
