"""Tokens a second of training a GPT, beside a plain PyTorch loop and transformers' Trainer.

    PRETUNE_DATA=FOLDER python bench/gpt.py
    PRETUNE_DATA=FOLDER python bench/gpt.py --shape wide --steps 40 --rounds 2

Shape `small` is nanoGPT's CPU setting (4 layers, 4 heads, 128 wide, blocks of 64, batches of 12, no
dropout) on the characters of tiny Shakespeare; `wide` is 6 layers, 6 heads, 384 wide, blocks of
256, batches of 8, dropout 0.1. All three run the same optimizer (AdamW, clipping at 1.0, cosine)
in one process, in turns; the median of each is compared.

The plain model is written for this bench as one would write it in an afternoon: square batches, one
map for queries, keys and values, `scaled_dot_product_attention`, a tied output layer, logits of all
positions at once, fused AdamW. The Trainer is given `GPT2LMHeadModel`.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from clock import WARM_UP, Clock, arguments, in_turns, run_ours, run_trainer
from machine import parse, table

OURS = "pretune"


@dataclass(frozen=True)
class Shape:
    """What is trained."""

    layers: int
    heads: int
    width: int
    block: int
    batch: int
    dropout: float

    @property
    def tokens(self) -> int:
        """Tokens an update."""
        return self.block * self.batch


SHAPES = {
    "small": Shape(4, 4, 128, 64, 12, 0.0),
    "wide": Shape(6, 6, 384, 256, 8, 0.1),
}


class PlainBlock(nn.Module):
    """One layer of the plain GPT."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.before = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.middle = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, width]`."""
        size, length, width = x.shape
        parts = self.qkv(self.before(x)).split(width, dim=2)
        q, k, v = (
            p.view(size, length, self.shape.heads, width // self.shape.heads).transpose(1, 2)
            for p in parts
        )
        dropout = self.shape.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(size, length, width)))
        inner = F.gelu(self.up(self.middle(x)), approximate="tanh")
        added: Tensor = x + self.drop(self.down(inner))
        return added


class PlainGpt(nn.Module):
    """A GPT as one would write it in an afternoon."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(shape.block, shape.width)
        self.drop = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.drop(self.tokens(ids) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def read_ids(text: str, workspace: Path) -> np.ndarray:
    """The text in ids of its characters; the tokenizer is saved in a folder."""
    from pretune.tokenizers.train import save_trained, train_tokenizer

    tokenizer = train_tokenizer([text], "char")
    (workspace / "tokenizer").mkdir()
    save_trained(tokenizer, workspace / "tokenizer")
    return np.array([tokenizer.engine.token_to_id(character) for character in text])


def recipe_of(workspace: Path, shape: Shape, steps: int) -> Any:
    """What is trained, as we say it."""
    from pretune.recipe.recipe import Recipe

    return Recipe.of(
        {
            "task": {"name": "causal_lm", "max_length": shape.block},
            "model": {
                "from": "gpt2-small",
                "tokenizer": str(workspace / "tokenizer"),
                "config": {
                    "n_layer": shape.layers,
                    "n_head": shape.heads,
                    "n_embd": shape.width,
                    "n_positions": shape.block,
                },
                "dropout": shape.dropout,
                "attention_dropout": shape.dropout,
            },
            "data": {"train": str(workspace / "text.txt"), "validation": None, "max_chars": 10**7},
            "train": {
                "batch_size": shape.batch,
                "max_steps": WARM_UP + steps,
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "weight_decay": 0.1,
                "beta2": 0.99,
            },
            "output": str(workspace / "run"),
        },
        "bench",
    )


def run_plain(ids: np.ndarray, shape: Shape, steps: int) -> Callable[[], float]:
    """The same for the plain loop."""
    data = torch.from_numpy(ids)
    torch.manual_seed(0)
    model = PlainGpt(shape, int(ids.max()) + 1).train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]

    def run() -> float:
        clock = Clock()
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
        for step in range(WARM_UP + steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(math.pi * step / (WARM_UP + steps))) / 2
            starts = torch.randint(len(data) - shape.block - 1, (shape.batch,)).tolist()
            inputs = torch.stack([data[i : i + shape.block] for i in starts])
            targets = torch.stack([data[i + 1 : i + 1 + shape.block] for i in starts])
            optimizer.zero_grad(set_to_none=True)
            model(inputs, targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            clock.tick()
        return clock.rate(steps, shape.tokens)

    return run


def run_peer(ids: np.ndarray, shape: Shape, steps: int) -> Callable[[], float]:
    """The same for transformers' Trainer with its GPT-2."""
    import transformers
    from datasets import Dataset

    count = len(ids) // shape.block
    blocks = ids[: count * shape.block].reshape(count, shape.block).tolist()
    data = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    config = transformers.GPT2Config(
        vocab_size=int(ids.max()) + 1,
        n_positions=shape.block,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    trainer = transformers.Trainer(
        model=transformers.GPT2LMHeadModel(config),
        args=arguments(
            shape.batch,
            steps,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            weight_decay=0.1,
            adam_beta2=0.99,
        ),
        train_dataset=data,
        data_collator=transformers.default_data_collator,
    )
    return lambda: run_trainer(trainer, steps, shape.tokens)


def measure(
    text: str, shape: Shape, steps: int, rounds: int, *, peers: bool
) -> dict[str, list[float]]:
    """Tokens a second of each engine in each round."""
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        (workspace / "text.txt").write_text(text, encoding="utf-8")
        ids = read_ids(text, workspace)
        runs = {OURS: run_ours(recipe_of(workspace, shape, steps), steps, tokens=True)}
        if peers:
            runs["plain PyTorch"] = run_plain(ids, shape, steps)
            runs["transformers' Trainer"] = run_peer(ids, shape, steps)
        return in_turns(runs, rounds)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: both")
    parser.add_argument("--steps", type=int, help="updates timed; default: 200, or 15 for wide")
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with tiny-shakespeare/input.txt")
    book = Path(os.environ["PRETUNE_DATA"]) / "tiny-shakespeare" / "input.txt"
    text = book.read_text(encoding="utf-8")
    for name in options.shape or SHAPES:
        shape, steps = SHAPES[name], options.steps or {"small": 200, "wide": 15}[name]
        found = measure(text, shape, steps, options.rounds, peers=not options.ours)
        print(
            "\n" + table(f"GPT {name}: {shape.tokens:,} tokens an update", found, OURS, "tokens/s")
        )


if __name__ == "__main__":
    main()
