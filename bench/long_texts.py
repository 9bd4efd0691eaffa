"""What each way to read long texts gives: cut, head_tail, windows.

    PRETUNE_DATA=FOLDER python bench/long_texts.py [--data zh en] [--output runs/long-texts]

zh   ChnSentiCorp (reviews of hotels, laptops and books), a BERT-tiny of random weights with the
     vocabulary of bert-base-chinese
en   synthetic: eight sentences of SST-2 that have one label, one after the other; MiniLM

Models read 64 tokens at a time, so that most texts are long for them. Each way is trained with the
same settings for each of `--seeds` seeds; of each run the epoch counts that is best on all of the
validation data. The table has the accuracy there, and on those of its texts that have more than 64
and more than 128 tokens. The last row is the model that was trained by `cut`, asked with
`--set long=windows`.

It takes about half an hour of one core. What is finished is not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse
from trained import run

import pretune

WAYS = ("cut", "head_tail", "windows")
#: Tokens that a model reads at a time, and of texts that are looked at by themselves.
LENGTH, LONG = 64, (64, 128)
#: Sentences of a synthetic text, and how often each sentence of the validation data is used.
SENTENCES, TIMES = 8, 4
#: The recipe and the settings of each part.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "zh": (
        "chnsenticorp",
        {"model.from": "bert-tiny", "train.epochs": 3, "train.learning_rate": 1e-3},
    ),
    "en": ("sst2", {"model.from": "minilm", "train.epochs": 2, "train.learning_rate": 1e-4}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=Path("runs/long-texts"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--records", type=int, help="train on so many, the first; default: all")
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with chnsenticorp, sst2 and vocab")
    data = Path(os.environ["PRETUNE_DATA"])
    for name in options.data:
        train, dev = files(name, data, options.output, options.records)
        recipe, settings = SETTINGS[name]
        settings = {
            **settings,
            "data.train": str(train),
            "data.validation": str(dev),
            "task.max_length": LENGTH,
        }
        if name == "zh":
            settings["model.tokenizer"] = str(data / "vocab/bert-base-chinese")
        made = {
            way: [
                run(
                    options.output / name,
                    f"{way}-{seed}",
                    recipe,
                    {**settings, "task.long": way, "seed": seed},
                )
                for seed in range(options.seeds)
            ]
            for way in WAYS
        }
        report(name, made, dev)


# Data


def files(name: str, data: Path, output: Path, records: int | None) -> tuple[Path, Path]:
    """The files to train on and to measure on; of `records` if not all."""
    made = []
    for part, times in (("train", 1), ("dev", TIMES)):
        if name == "zh":
            texts = read(data / f"chnsenticorp/{part}.tsv")
        else:
            texts = long_texts(read(data / f"sst2/{part}.tsv"), times)
        texts = texts[: records if part == "train" else None]
        path = output / name / f"{part}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        column = "text" if name == "zh" else "sentence"
        lines = [f"{text}\t{label}\n" for text, label in texts]
        path.write_text("".join([f"{column}\tlabel\n", *lines]), encoding="utf-8")
        made.append(path)
    return made[0], made[1]


def long_texts(rows: Sequence[tuple[str, str]], times: int) -> list[tuple[str, str]]:
    """Join sentences of one label, each in as many texts as it is taken times."""
    chance = random.Random(0)  # noqa: S311 - the same each time
    made: list[tuple[str, str]] = []
    for _ in range(times):
        for label in sorted({label for _, label in rows}):
            own = [text for text, other in rows if other == label]
            chance.shuffle(own)
            starts = range(0, len(own) - SENTENCES + 1, SENTENCES)
            made += [(" . ".join(own[i : i + SENTENCES]), label) for i in starts]
    chance.shuffle(made)
    return made


def read(path: Path) -> list[tuple[str, str]]:
    """Texts, which stand in the first column, and their labels."""
    with path.open(encoding="utf-8", newline="") as handle:
        _, *rows = csv.reader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(text, label) for text, label in rows]


# Measuring


def report(name: str, made: dict[str, list[Path]], dev: Path) -> None:
    """Print the accuracy of each way, on all texts and on long ones."""
    rows = read(dev)
    texts = [text for text, _ in rows]
    first = pretune.load(made["cut"][0])
    lengths = np.array([len(own.ids) for own in first.tokenizer.encode(texts)])
    parts = [("all", lengths > 0), *((f"over {n} tokens", lengths > n) for n in LONG)]
    named = [f"{title} ({int(which.sum())})" for title, which in parts]
    print(f"\n{name}: {len(texts)} texts of {lengths.mean():.0f} tokens on average\n")
    print(f"| task.long | {' | '.join(named)} | minutes of training |")
    print("|---" * (len(parts) + 2) + "|")
    asked: list[tuple[str, str, dict[str, Any]]] = [(way, way, {}) for way in WAYS]
    asked.append(("cut, asked with windows", "cut", {"long": "windows"}))
    for title, way, options in asked:
        right = [correct(folder, rows, options) for folder in made[way]]
        cells = [title]
        for _, which in parts:
            each = [float(own[which].mean()) for own in right]
            seeds = ", ".join(f"{value:.4f}" for value in each)
            cells.append(f"{statistics.mean(each):.4f} ({seeds})")
        results = [json.loads((folder / "result.json").read_text()) for folder in made[way]]
        minutes = statistics.median(result["seconds"] / 60 for result in results)
        cells.append("" if options else f"{minutes:.1f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def correct(
    folder: Path, rows: Sequence[tuple[str, str]], options: dict[str, Any]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether the answer to each text is its label."""
    bundle = pretune.load(folder, options=options)
    labels = {"0": "negative", "1": "positive"}
    answers: Any = pretune.predict(bundle, [text for text, _ in rows])
    pairs = zip(answers, rows, strict=True)
    return np.array([answer.label == labels[label] for answer, (_, label) in pairs])


if __name__ == "__main__":
    main()
