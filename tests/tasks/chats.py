"""Small models that chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretune.recipe.recipe import Recipe
from pretune.training.run import train_recipe

DIALOGUES = [
    ["the film good?", "good", "un good."],
    ["中国电影好看不", "好看"],
    ["bad bad", "the film", "好", "the bad film is bad", "no!", "不看"],
]
#: A reply that is cut wherever it is learned: a model never learns that it ends.
ENDLESS = ["go!", "看 " * 300]


def trained(folder: Path, dialogues: Sequence[Sequence[str]], **changes: Any) -> Path:
    """Train a model on some dialogues until it knows them by heart; return its run folder."""
    lines = [json.dumps({"turns": turns}, ensure_ascii=False) for turns in dialogues]
    data = folder / "talk.jsonl"
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    usual = {
        "data.train": str(data),
        "data.validation": None,
        "model.tokenizer": None,
        "model.train_tokenizer": {"kind": "wordpiece", "vocab_size": 100},
        "model.config": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 64},
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
        "task.max_length": 64,
        "train.epochs": 80,
        "train.warmup": 2,
        "train.learning_rate": 1e-2,
        "train.device": "cpu",
        "output": str(folder / "run"),
    }
    train_recipe(Recipe.load("chat-zh", {**usual, **changes}), quiet=True)
    return folder / "run"


def instruct_recipe(
    folder: Path, rows: Sequence[dict[str, str]], length: int, **changes: Any
) -> Recipe:
    """The recipe of a model that learns some instructions by heart.

    Args:
        folder: of the file and the run.
        rows: as Alpaca has them.
        length: of the model and the sequences, in tokens.
        changes: more values.
    """
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    usual = {
        "data.train": str(data),
        "data.validation": str(data),
        "model.from": "gpt2-small",
        "model.train_tokenizer": {"kind": "bpe", "vocab_size": 300},
        "model.config": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": length},
        "model.dropout": 0.0,
        "task.max_length": length,
        "task.temperature": 0.0,
        "train.epochs": 60,
        "train.eval_every": 60,
        "train.warmup": 2,
        "train.learning_rate": 1e-2,
        "train.device": "cpu",
        "output": str(folder / "run"),
    }
    return Recipe.load("instruct", {**usual, **changes})
