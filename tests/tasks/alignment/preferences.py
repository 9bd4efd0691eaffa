"""A small model that answers, and preferences to train it on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pretune.bundle.bundle import Bundle, load, save
from pretune.data.records import Records
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import AnyTask
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.tokenizers.train import train_tokenizer

ROWS: list[dict[str, Any]] = [
    {"prompt": "Add 2 and 2", "chosen": "It is four.", "rejected": "No."},
    {"prompt": "Who are you?", "chosen": "A model 🙂", "rejected": "I will not say who I am, no."},
    {"prompt": "你是谁", "chosen": "一个模型。", "rejected": "不"},
    {"prompt": "Say it", "chosen": "it", "rejected": "I am not going to say anything at all."},
    {"prompt": "Hello", "chosen": "Hello to you", "rejected": "Hello hello hello hello"},
    {"prompt": "Name a colour", "chosen": "Red, or blue.", "rejected": "Rain"},
]
SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 96}


@cache
def answering(seed: int = 0) -> Bundle:
    """A GPT-2 of random weights that was trained by `instruct`, as far as its files say."""
    texts = [text for row in ROWS for text in row.values()]
    torch.manual_seed(seed)
    bundle = load(
        "gpt2-small",
        task=Instruct(InstructOptions(max_length=96, max_new_tokens=8)),
        tokenizer=train_tokenizer(texts * 3, "bpe", 300),
        config=SIZES,
    )
    for name, parameter in bundle.model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return bundle


def saved(folder: Path, seed: int = 0) -> Path:
    """The same in a folder."""
    folder.mkdir()
    save(answering(seed), folder)
    return folder


def records(task: AnyTask, rows: list[dict[str, Any]] = ROWS) -> Records:
    """Rows as a task reads them."""
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    given = Records(rows, "p.jsonl", range(1, len(rows) + 1), columns)
    adapted: Records = task.adapted(given, {}, True)  # type: ignore[attr-defined]
    return adapted


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Rows as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(name: str, folder: Path, **changes: Any) -> Recipe:
    """A recipe of a run on the rows, from the model in `folder / "sft"`."""
    usual = {
        "data.train": str(write(folder / "p.jsonl")),
        "data.validation": str(write(folder / "v.jsonl", ROWS[:3])),
        "model.from": str(folder / "sft"),
        "model.dropout": 0.0,
        "task.max_length": 96,
        "train.epochs": 3,
        "train.batch_size": 2,
        "train.learning_rate": 1e-3,
        "train.warmup": 0,
        "train.device": "cpu",
        "output": str(folder / "run"),
    }
    return Recipe.load(name, {**usual, **changes})
