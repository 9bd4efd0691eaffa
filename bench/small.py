"""What a model loses and gains by becoming small: distilled, pruned, in 8 bits, as ONNX.

A MiniLM (6 layers) is fine-tuned on `emotion` and on SST-2: the teacher. Then, for each:

    fine-tuned   every other layer of MiniLM, trained on the labels alone
    distilled    every other layer of the teacher, trained on the labels and the teacher, `distill`;
                 for SST-2 also on unlabelled parts of its sentences, and on two parts put together
    pruned       the teacher without 30 % of its heads and half of its neurons, trained once more
    int8         what `pretune quantize` makes of the teacher and of the first distilled student
    ONNX         what `pretune export --to onnx --int8` makes of that student, by onnxruntime

The first two are trained for each of `--seeds` seeds. All models answer the validation data in one
process, in turns, beside transformers' pipeline with the teacher: accuracy, megabytes of weights,
texts a second, and the median milliseconds of one text.

    PRETUNE_DATA=FOLDER python bench/small.py [--data emotion sst2] [--output runs/small]
    PRETUNE_DATA=FOLDER python bench/small.py --pretrain     DistilBERT's and MiniLM's losses

`--pretrain` goes on with masked tokens from every other layer of MiniLM: with its hidden states and
relations as a teacher, and without one for as many updates as cost the processor the same.

It takes about an hour of two cores. What is finished is not made again, so it may be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import settle
from machine import parse, table
from trained import run, told

import pretune
from pretune.training.callbacks import Callback, Moment

#: The file and the column of texts of each data set.
DATA = {"emotion": ("validation.tsv", "text"), "sst2": ("dev.tsv", "sentence")}
#: Of every training on labels, whose epochs are those of the recipes.
TRAIN: dict[str, Any] = {"train.batch_size": 64, "train.learning_rate": 1e-4}
EPOCHS = {"emotion": 2, "sst2": 3}
#: Of each sentence, how many unlabelled parts a student reads, and how many mixtures with another;
#: and how often it reads all of that. Sentences that a teacher learned by heart tell its student
#: hardly more than their labels do.
MADE = {"sst2": (2, 1)}
TAUGHT_EPOCHS = {"sst2": 2}
#: Of pre-training: 30 books, and other books to measure on.
PRETRAIN: dict[str, Any] = {
    "task.max_length": 128,
    "model.from": "minilm",
    "model.layers": "every-other",
    "train.batch_size": 32,
    "train.learning_rate": 3e-4,
    "train.warmup": 0.05,
    "train.save_every": None,
}
#: Updates by which it is measured what one costs.
PILOT = 24
BATCH, LENGTH = 32, 128

#: Texts in, labels out.
Labels = Callable[[Sequence[str]], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--output", type=Path, default=Path("runs/small"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="float32", help="of training: float32 or bf16")
    parser.add_argument("--rounds", type=int, default=3, help="0: measure no speed")
    parser.add_argument("--texts", type=int, default=256, help="of which the speed is measured")
    parser.add_argument("--pretrain", action="store_true")
    parser.add_argument("--steps", type=int, default=600, help="of --pretrain, with a teacher")
    options = parse(parser)
    TRAIN["train.precision"] = PRETRAIN["train.precision"] = options.precision
    if options.pretrain:
        pretrain(options)
        return
    for name in options.data:
        folders = make(name, options)
        report(name, folders, options)


# Models


def make(name: str, options: argparse.Namespace) -> dict[str, list[Path]]:
    """Train, prune, quantize and export; the folders of each kind of model."""
    output = options.output / name
    source = Path(os.environ["PRETUNE_DATA"]) / name
    columns = {} if DATA[name][1] == "text" else {"text": DATA[name][1]}
    training, validation = str(source / "train.tsv"), str(source / DATA[name][0])
    data: dict[str, Any] = {
        "data.train": training,
        "data.validation": validation,
        "data.columns": columns,
        "train.epochs": EPOCHS[name],
    }
    teacher = run(output, "teacher", name, {**data, **TRAIN, "model.from": "minilm"})
    alone, taught = [], []
    for seed in range(options.seeds):
        student = {**data, **TRAIN, "seed": seed, "model.layers": "every-other"}
        settings = {**student, "model.from": "minilm"}
        alone.append(run(output, f"fine-tuned-{seed}", name, settings))
        settings = {**student, "teacher.from": str(teacher)}
        if name in MADE:
            texts = with_unlabelled(Path(training), output / "unlabelled.tsv", *MADE[name])
            settings |= {"data.train": str(texts), "train.epochs": TAUGHT_EPOCHS[name]}
        taught.append(run(output, f"distilled-{seed}", "distill", settings))
    # From the teacher without its least important parts, one epoch more.
    cut = output / "cut"
    parts = ("--heads", "0.3", "--ffn", "0.5", "--data", training, "--limit", "2000")
    told(cut, "prune", teacher, *parts)
    once = {**data, **TRAIN, "train.epochs": 1, "model.from": str(cut)}
    folders = {
        "teacher": [teacher],
        "fine-tuned": alone,
        "distilled": taught,
        "pruned": [run(output, "pruned", name, once)],
    }
    for kind, whole in (("teacher, int8", teacher), ("distilled, int8", taught[0])):
        folder = output / kind.replace(", ", "-")
        told(folder, "quantize", whole, "--data", validation)
        folders[kind] = [folder]
    exported = output / "distilled-onnx"
    # onnxruntime rounds inputs with one scale for a batch: a few more answers differ.
    gate = ("--data", validation, "--min-agreement", "97")
    told(exported, "export", taught[0], "--to", "onnx", "--int8", *gate)
    return {**folders, "ONNX": [exported], "ONNX, int8": [exported]}


def with_unlabelled(source: Path, target: Path, parts: int, mixed: int) -> Path:
    """Write labelled sentences, and after them texts without a label that are made of their words.

    Args:
        source: sentences and labels, with a line of names.
        target: what is written.
        parts: so many runs of two or more words of each sentence.
        mixed: so many texts of each sentence's beginning and the end of another.

    Returns:
        `target`.
    """
    names, *rows = source.read_text(encoding="utf-8").splitlines()
    words = [row.split("\t")[0].split(" ") for row in rows]
    draw = random.Random(0)  # noqa: S311
    made: dict[str, None] = {}  # each text once, in order
    for own in words:
        for _ in range(parts):
            length = draw.randint(min(2, len(own)), len(own))
            start = draw.randint(0, len(own) - length)
            made[" ".join(own[start : start + length])] = None
    for own in words:
        for _ in range(mixed):
            other = draw.choice(words)
            begin = own[: draw.randint(1, len(own))]
            made[" ".join([*begin, *other[draw.randint(0, len(other) - 1) :]])] = None
    known = {" ".join(own) for own in words}
    new = [f"{text}\t" for text in made if text not in known]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join([names, *rows, *new]) + "\n", encoding="utf-8")
    return target


# Measuring


def report(name: str, folders: dict[str, list[Path]], options: argparse.Namespace) -> None:
    """Print accuracy and size of all, and how fast one of each kind is."""
    file, column = DATA[name]
    path = Path(os.environ["PRETUNE_DATA"]) / name / file
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row[column] for row in rows]
    right = np.array(pretune.load(folders["teacher"][0]).task.labels)  # type: ignore[union-attr]
    names = dict(zip(sorted({row["label"] for row in rows}), right.tolist(), strict=True))
    true = [row["label"] if row["label"] in right else names[row["label"]] for row in rows]

    engines: dict[str, Labels] = {"transformers' pipeline": pipeline(folders["teacher"][0])}
    print(f"\n{name}: {len(texts)} texts\n")
    print("| model | accuracy | each seed | MB | minutes of training |\n|---|---|---|---|---|")
    for kind, each in folders.items():
        small = "int8" in kind
        made = [onnx(f, small) if kind.startswith("ONNX") else ours(f) for f in each]
        engines[kind] = made[0]
        scores = [
            sum(a == b for a, b in zip(answer(texts), true, strict=True)) / len(true)
            for answer in made
        ]
        seeds = ", ".join(f"{score:.4f}" for score in scores)
        cells = [f"{statistics.mean(scores):.4f}", seeds if len(each) > 1 else ""]
        minutes = [json.loads(result.read_text())["seconds"] / 60 for result in results(each)]
        cells += [f"{weights(each[0], small):.1f}"]
        cells += [f"{statistics.median(minutes):.1f}" if minutes else ""]
        print("| " + " | ".join([kind, *cells]) + " |", flush=True)
    if options.rounds:
        speed(name, texts[: options.texts], engines, options.rounds)


def results(folders: Sequence[Path]) -> list[Path]:
    return [folder / "result.json" for folder in folders if (folder / "result.json").is_file()]


def weights(folder: Path, small: bool) -> float:
    """The megabytes of the weights, with the smallest file that an engine needs."""
    if (folder / "onnx").is_dir():
        file = folder / "onnx" / f"model{'_quantized' if small else ''}.onnx"
    else:
        file = next((folder / "best" if (folder / "best").exists() else folder).glob("*.saf*"))
    return file.stat().st_size / 1e6


def speed(name: str, texts: list[str], engines: dict[str, Labels], rounds: int) -> None:
    """Texts a second of many, and milliseconds of one."""
    rates: dict[str, list[float]] = {kind: [] for kind in engines}
    single: dict[str, list[float]] = {kind: [] for kind in engines}
    for number in range(rounds + 1):
        for kind in engines if number % 2 else reversed(list(engines)):
            settle(engines[kind], texts[:1])
            start = time.perf_counter()
            engines[kind](texts)
            taken = time.perf_counter() - start
            each = []
            for text in texts[:: max(1, len(texts) // 24)]:
                start = time.perf_counter()
                engines[kind]([text])
                each.append(1000 * (time.perf_counter() - start))
            if number:  # the first round meets each length for the first time
                rates[kind].append(len(texts) / taken)
                single[kind].append(statistics.median(each))
    print("\n" + table(f"{name}: {len(texts)} texts", rates, "distilled, int8", "texts/s"))
    what = f"{name}: one text, p50"
    print("\n" + table(what, single, "distilled, int8", "ms", lower=True, digits=1), flush=True)


# Engines


def ours(folder: Path) -> Labels:
    """Answers of `Predictor`."""
    from pretune.inference.predict import Predictor

    predictor = Predictor(pretune.load(folder), device="cpu")

    def answer(texts: Sequence[str]) -> list[str]:
        each: list[Any] = predictor.predict(predictor.records(list(texts)))
        return [one.label for one in each]

    return answer


def pipeline(folder: Path) -> Labels:
    """Answers of transformers' pipeline."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    place = str(folder / "best")
    pipe = transformers.pipeline("text-classification", model=place, tokenizer=place, device="cpu")

    def answer(texts: Sequence[str]) -> list[str]:
        batch = 1 if len(texts) == 1 else BATCH
        answers = pipe(list(texts), batch_size=batch, truncation=True, max_length=LENGTH)
        return [each["label"] for each in answers]

    return answer


def onnx(folder: Path, small: bool) -> Labels:
    """Answers of onnxruntime, in padded batches of like lengths."""
    from tokenizers import Tokenizer

    onnxruntime = importlib.import_module("onnxruntime")

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    file = folder / "onnx" / f"model{'_quantized' if small else ''}.onnx"
    session = onnxruntime.InferenceSession(str(file), settings, ["CPUExecutionProvider"])
    wanted = [each.name for each in session.get_inputs()]
    names = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()

    def answer(texts: Sequence[str]) -> list[str]:
        labels = [""] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        for start in range(0, len(texts), BATCH):
            which = order[start : start + BATCH]
            read = tokenizer.encode_batch([texts[i] for i in which])
            given = {
                "input_ids": [line.ids for line in read],
                "attention_mask": [line.attention_mask for line in read],
                "token_type_ids": [line.type_ids for line in read],
            }
            arrays = {key: np.array(value) for key, value in given.items() if key in wanted}
            for i, scores in zip(which, session.run(["logits"], arrays)[0], strict=True):
                labels[i] = names[str(int(scores.argmax()))]
        return labels

    return answer


# Pre-training


def pretrain(options: argparse.Namespace) -> None:
    """Masked tokens with and without a teacher, for as many updates as take the same time."""
    output = options.output / "pretrain"
    output.mkdir(parents=True, exist_ok=True)
    data = books(output)
    lesson = {
        "teacher.from": "minilm",
        "teacher.soft": 0,
        "teacher.labels": 1,
        "teacher.hidden": 1,
        "teacher.relations": 1,
    }
    plain = {"teacher": None}
    settings = {**PRETRAIN, **data}
    # What an update costs of the processor, which does not depend on what else it does.
    short = {**settings, "train.max_steps": PILOT, "train.eval_every": PILOT}
    pilots = {"taught": {**short, **lesson}, "alone": {**short, **plain}}
    each = {}
    for name, own in pilots.items():
        path = output / f"pilot-{name}.json"
        if not path.is_file():
            watch = Watch()
            folder = str(output / f"pilot-{name}")
            pretune.train(
                "distill-mlm", {**own, "output": folder}, overwrite=True, callbacks=[watch]
            )
            path.write_text(json.dumps(watch.seconds()))
        each[name] = json.loads(path.read_text())
    counts = {"taught": options.steps}
    counts["alone"] = round(options.steps * each["taught"] / each["alone"])
    folders = {}
    for name, kind in (("taught", lesson), ("alone", plain)):
        count = counts[name]
        steps = {"train.max_steps": count, "train.eval_every": count // 4}
        folders[name] = run(output, name, "distill-mlm", {**settings, **steps, **kind})
    print("| student | updates | processor seconds an update | perplexity of masked tokens |")
    print("|---|---|---|---|")
    for name, words in (("taught", "with the teacher"), ("alone", "without")):
        result = json.loads((folders[name] / "result.json").read_text())
        loss = result["metrics"].get("label_loss", result["metrics"]["loss"])
        perplexity = f"{float(np.exp(loss)):.2f}"
        print(f"| {words} | {result['steps']} | {each[name]:.2f} | {perplexity} |")


class Watch(Callback):
    """Notes the processor's time of each update."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step(self, moment: Moment) -> None:
        self.times.append(time.process_time())

    def seconds(self) -> float:
        """The median of an update, over all threads."""
        return statistics.median(np.diff(self.times))


def books(output: Path) -> dict[str, Any]:
    """Paragraphs of books to learn from, and of others to measure on."""
    folder = Path(os.environ["PRETUNE_DATA"]) / "gutenberg-en"
    paths = sorted(folder.rglob("*.txt"))
    chosen = {"train": paths[:30], "validation": paths[-4:]}
    for part, files in chosen.items():
        target = output / f"{part}.txt"
        if target.is_file():
            continue
        parts = [path.read_text(encoding="utf-8").split("\n\n") for path in files]
        lines = [" ".join(each.split()) for book in parts for each in book]
        kept = [line for line in lines if 200 <= len(line) <= 800]
        kept = kept if part == "train" else kept[:: max(1, len(kept) // 600)]
        target.write_text("\n\n".join(kept) + "\n", encoding="utf-8")
    return {f"data.{part}": str(output / f"{part}.txt") for part in chosen}


if __name__ == "__main__":
    main()
