"""Does pre-training pay? A small model from random weights, and the same one pre-trained here.

A ModernBERT of 4 layers of 192 (3.1 million parameters) is pre-trained by the built-in recipe
`modernbert-pretrain` on texts of `PRETUNE_DATA`: books, encyclopaedia, talk, and the texts of
training data without their labels. Validation data are not among them. Then it is fine-tuned:

    random       from random weights
    neighbours   only its token embeddings are not random (`model.embeddings=neighbours`)
    pre-trained  from the pre-trained weights: 30 % of the tokens were masked
    masks-15     the same, by masks of 15 %; `masks-40`: of 40 %
    replaced     the same, by ELECTRA's replaced-token detection (`replaced_token`)

For each start and task the rate of fine-tuning is the best of `--rates` with seed 0; then come the
other seeds. `--curve` also fine-tunes what was saved on the way, with seed 0.

    PRETUNE_DATA=FOLDER python bench/pays.py --language en [--steps 2000] [--output runs/pays]
    PRETUNE_DATA=FOLDER python bench/pays.py --language zh

What is finished is not made again, so it may be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

sys.path.insert(0, str(Path(__file__).parent))
from machine import machine, parse, shown
from trained import run, told

#: Of each language the files that are read, how often, and of how many of their documents each
#: time: the texts that are like those of the tasks are few, and read more often.
SOURCES: dict[str, dict[str, tuple[float, ...]]] = {
    "en": {
        "gutenberg-en/*.txt": (0.5,),
        "wikitext-2/valid.txt": (1,),
        "squad/train-v1.1.json": (1,),
        "squad/train-v2.0.json": (1,),
        "instruct/train.jsonl": (1,),
        "preference/train.jsonl": (1,),
        "multi30k-en-de/train.en": (1,),
        "tatoeba-zh-en/train.tsv": (1,),
        "sst2/train.tsv": (1,) * 4,
        "emotion/train.tsv": (1,) * 2,
        "mrpc/train.tsv": (1,) * 2,
        "ner-wnut17/train.conll": (1,) * 4,
    },
    "zh": {
        "classics-zh/*.txt": (0.33,),
        "chitchat-zh/lccc.jsonl": (1,),
        "chitchat-zh/kdconv.jsonl": (1,),
        "cmrc2018/trial.json": (1,),
        "instruct/train.jsonl": (1,),
        "preference/train.jsonl": (1,),
        "tatoeba-zh-en/train.tsv": (1,),
        "ner-weibo/train.conll": (1,),
        "ner-resume/train.conll": (1,),
        "chnsenticorp/train.tsv": (1,) * 2,
        "thucnews/train.tsv": (1,) * 2,
        "ner-msra/train.conll": (1,) * 2,
    },
}
#: Columns of tables that are no text of their language.
NO_TEXT = {"en": {"label", "zh", "attribution"}, "zh": {"label", "en", "attribution"}}
#: The recipe of each task, its files, and what differs from the recipe.
TASKS: dict[str, dict[str, tuple[str, str, str, dict[str, Any]]]] = {
    "en": {
        "sst2": ("sst2", "sst2/train.tsv", "sst2/dev.tsv", {"train.epochs": 3}),
        "mrpc": ("mrpc", "mrpc/train.tsv", "mrpc/dev.tsv", {"train.epochs": 3}),
        "wnut17": (
            "ner",
            "ner-wnut17/train.conll",
            "ner-wnut17/dev.conll",
            {"train.epochs": 5, "task.overlap": 16},
        ),
    },
    "zh": {
        "thucnews": ("thucnews", "thucnews/train.tsv", "thucnews/dev.tsv", {"train.epochs": 2}),
        "chnsenticorp": (
            "chnsenticorp",
            "chnsenticorp/train.tsv",
            "chnsenticorp/dev.tsv",
            {"train.epochs": 2},
        ),
        "msra": (
            "ner",
            "ner-msra/train.conll",
            "ner-msra/dev.conll",
            {"train.epochs": 2, "task.overlap": 16},
        ),
    },
}
#: Of every fine-tuning.
TUNE: dict[str, Any] = {
    "task.max_length": 64,
    "train.batch_size": 32,
    "train.warmup": 0.1,
    "train.save_every": None,
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
}
VOCABULARY = {
    "en": ("--vocab-size", "8000"),
    "zh": ("--vocab-size", "8000", "--alphabet-size", "3500"),
}
#: What pre-training changes of the recipe, by the start it makes.
OBJECTIVES: dict[str, dict[str, Any]] = {
    "pre-trained": {},
    "masks-15": {"task.mask_share": 0.15},
    "masks-40": {"task.mask_share": 0.4},
    "replaced": {"task": {"name": "replaced_token", "max_length": 64}},
}
STARTS = ("random", "neighbours", *OBJECTIVES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--language", choices=TASKS, default="en")
    parser.add_argument("--tasks", nargs="+", help="some of the language's; default: all")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS[:3]))
    parser.add_argument("--steps", type=int, default=2000, help="updates of pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", nargs="+", default=["1e-4", "3e-4", "1e-3"])
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/pays"))
    options = parse(parser)
    language, output = options.language, options.output / options.language
    settings = prepared(language, output)
    wanted = {*options.starts, "pre-trained"} if options.curve else {*options.starts}
    starts = {
        start: model(output, start, settings, options.steps) for start in STARTS if start in wanted
    }
    tasks = options.tasks or list(TASKS[language])
    rows = []
    for task in tasks:
        for start in options.starts:
            rows.append(row(language, output, task, start, starts[start], options))
            print(rows[-1], flush=True)
    print(f"\n{shown(machine())}\n")
    print("| task | start | rate | mean ± sd | each seed |\n|---|---|---|---|---|")
    print("\n".join(rows))
    if options.curve:
        curve(language, output, tasks, options)


# Pre-training


def prepared(language: str, output: Path) -> dict[str, Any]:
    """The corpus and its tokenizer, as settings of pre-training."""
    texts = output / "texts"
    if not texts.exists():
        write_texts(language, output / "texts.part")
        (output / "texts.part").rename(texts)
    told(output / "tokenizer", "tokenizer", texts, "--kind", "wordpiece", *VOCABULARY[language])
    how = ["--documents", "line", "--keep-duplicates", "--validation", "0.01", "--tokenizer"]
    told(output / "corpus", "prepare", texts, *how, str(output / "tokenizer"))
    return {
        "data.train": str(output / "corpus"),
        "data.validation": str(output / "corpus/validation"),
        "model.tokenizer": str(output / "tokenizer"),
        "model.train_tokenizer": None,
    }


def model(output: Path, start: str, settings: dict[str, Any], steps: int) -> Path:
    """The folder of the model of a start."""
    if start in OBJECTIVES:
        kept = {"train.save_every": max(1, steps // 4), "train.eval_every": max(1, steps // 8)}
        own = {**kept, "train.max_steps": steps, "train.keep": 8, **OBJECTIVES[start]}
    elif start == "random":
        own = {"train.max_steps": 0, "model.embeddings": None}
    else:
        own = {"train.max_steps": 0}
    return run(output, start, "modernbert-pretrain", {**settings, **own}) / "best"


def write_texts(language: str, folder: Path) -> None:
    """One text file for each source, a document a line."""
    data = Path(os.environ["PRETUNE_DATA"])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (pattern, times) in enumerate(SOURCES[language].items()):
        paths = sorted(data.glob(pattern))
        if not paths:
            raise SystemExit(f"{data / pattern}: no such file")
        lines = [line for path in paths for line in texts_of(path, language)]
        with (folder / f"{number:02}.txt").open("w", encoding="utf-8") as file:
            for share in times:
                step = round(1 / share)
                file.writelines(line + "\n" for line in lines[::step])


def texts_of(path: Path, language: str) -> Iterator[str]:
    """The documents of a file in one language, without line ends."""
    for text in raw_texts(path, language):
        if joined := " ".join(text.split()):
            yield joined


def raw_texts(path: Path, language: str) -> Iterator[str]:
    """The documents of a file in one language, by the kind of the file."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".conll":
        space = " " if language == "en" else ""
        for sentence in content.split("\n\n"):
            yield space.join(line.split("\t")[0] for line in sentence.splitlines())
    elif path.suffix == ".tsv":
        lines = csv.DictReader(content.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        for line in lines:
            yield from (text for name, text in line.items() if name not in NO_TEXT[language])
    elif path.suffix == ".json":
        for article in json.loads(content)["data"]:
            for paragraph in article["paragraphs"]:
                yield paragraph["context"]
                yield from (question["question"] for question in paragraph["qas"])
    elif path.suffix == ".jsonl":
        for record in map(json.loads, content.splitlines()):
            if "turns" in record:
                yield " ".join(record["turns"])
            elif record.get("lang") == language:
                fields = ("instruction", "input", "prompt", "output", "chosen", "rejected")
                yield from (str(record.get(field) or "") for field in fields)
    else:  # books, by paragraph, or a sentence a line
        yield from content.split("\n\n" if path.suffix == ".txt" else "\n")


# Fine-tuning


def row(
    language: str, output: Path, task: str, start: str, model: Path, options: argparse.Namespace
) -> str:
    """A line of the table: a task from a start, with its best rate."""
    first = {rate: tuned(language, output, task, start, model, rate, 0) for rate in options.rates}
    rate = max(first, key=lambda each: first[each])
    seeds = range(1, options.seeds)
    more = [tuned(language, output, task, start, model, rate, seed) for seed in seeds]
    scores = [first[rate], *more]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    each = ", ".join(f"{score:.4f}" for score in scores)
    return f"| {task} | {start} | {rate} | {statistics.mean(scores):.4f} ± {spread:.4f} | {each} |"


def tuned(
    language: str, output: Path, task: str, start: str, model: Path, rate: str, seed: int
) -> float:
    """Accuracy, or F1 of entities, of one fine-tuning."""
    recipe, train, validation, own = TASKS[language][task]
    data = Path(os.environ["PRETUNE_DATA"])
    settings = {
        **TUNE,
        **own,
        "data.train": str(data / train),
        "data.validation": str(data / validation),
        "model.from": str(model),
        "train.learning_rate": float(rate),
        "seed": seed,
    }
    folder = run(output / "tuned", f"{task}-{start}-{rate}-{seed}", recipe, settings)
    metrics = json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"]
    return float(metrics["f1" if recipe == "ner" else "accuracy"])


def curve(language: str, output: Path, tasks: list[str], options: argparse.Namespace) -> None:
    """The scores of what was saved on the way, by the minutes that it took."""
    folder = output / "pre-trained"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    minutes = result["seconds"] / 60 / result["steps"]
    print(f"\n| updates | minutes | {' | '.join(tasks)} |\n|{'---|' * (2 + len(tasks))}")
    for place in sorted(
        folder.glob("checkpoints/*"), key=lambda path: int(path.name.split("-")[-1])
    ):
        steps = int(place.name.split("-")[-1])
        scores = [
            max(
                tuned(language, output, task, f"after-{steps}", place, rate, 0)
                for rate in options.rates
            )
            for task in tasks
        ]
        shown_scores = " | ".join(f"{score:.4f}" for score in scores)
        print(f"| {steps:,} | {steps * minutes:.0f} | {shown_scores} |", flush=True)


if __name__ == "__main__":
    main()
