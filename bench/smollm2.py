"""SmolLM2-135M-Instruct: generation beside transformers, prompting, and instruction tuning by LoRA.

    python bench/smollm2.py --parts generate
    PRETUNE_DATA=FOLDER python bench/smollm2.py --parts prompt tune
    PRETUNE_DATA=FOLDER python bench/smollm2.py --new-tokens 8 --limit 8 --train-rows 16 (a trial)

`make smollm2` installs the model. Both engines read the same GGUF file, compute in float32 and
write the likeliest tokens, exactly as many; the prompt is part of the time, the rounds take turns,
and the median is compared. How many tokens agree is printed. `pretune, int8` multiplies in 8 bits.
Memory is that of a process of its own for each engine, which loads the model and writes once.

Prompting asks with 0 and 5 examples (three draws), by the likelihood of each answer. Tuning takes
the 970 short English instructions of `instruct/train.jsonl`, holds 100 back, and shows held-out
loss, exact match and ten replies before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import peak_of, say_peak
from generate import seconds
from machine import parse, record, table

import pretune
from pretune.checkpoints.source import EMBEDDED
from pretune.decoding.decoding import Decoding
from pretune.inference.generate import TextGenerator
from pretune.inference.prompts import template_of
from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
from pretune.training.run_result import peak_memory_mb

NAME = "smollm2"
#: Our engines, and the precision of each.
OURS = {"pretune": "float32", "pretune, int8": "int8"}
QUESTIONS = (
    "What is the capital of France?",
    "Name three primary colours, and say where each of them occurs in nature.",
    "Why is the sky blue?",
    "Write a short poem about a teapot that wanted to be a ship.",
    "How do I boil an egg?",
    "Explain to a child what a language model is.",
    "Give me five names for a grey cat.",
    "What should I see in Beijing within two days? I like old gardens, and I walk slowly.",
)
#: What is asked of each data set: its file, the template, and the words for the labels.
PROMPTS: dict[str, tuple[str, str, str, Mapping[str, str] | None]] = {
    "SST-2": (
        "sst2/dev.tsv",
        "sst2/train.tsv",
        "Review: {sentence}\nSentiment: {answer}",
        {"0": "negative", "1": "positive"},
    ),
    "emotion": (
        "emotion/validation.tsv",
        "emotion/train.tsv",
        "Text: {text}\nEmotion: {answer}",
        None,
    ),
}


def gguf_file() -> Path:
    """The file in the package."""
    model = EMBEDDED[NAME]
    spec = importlib.util.find_spec(model.package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{NAME} is not installed: {model.install}")
    return next(Path(spec.origin).parent.glob(model.inside))


def writer(precision: str) -> TextGenerator:
    """Our engine."""
    bundle = pretune.load(NAME)
    template = template_of(bundle, always=True)
    return TextGenerator.of(bundle, template=template, batch_size=64, precision=precision)


def transformers_model() -> Any:
    """Theirs."""
    import transformers

    transformers.logging.set_verbosity_error()
    file = gguf_file()
    with redirect_stderr(StringIO()):  # a bar for each of its steps
        return transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        ).eval()


def ours(engine: TextGenerator, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    decoding = Decoding(temperature=0, max_new_tokens=count, stop_tokens=())
    return [list(g.tokens) for g in engine.generate([*map(list, prompts)], decoding)]


def theirs(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[2] * (longest - len(p)) + [*p] for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        written = model.generate(
            ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=2
        )
    rows: list[list[int]] = written[:, longest:].tolist()
    return rows


def generate(options: argparse.Namespace) -> None:
    """Tokens a second of both, whether they write the same, and memory."""
    engines = {name: writer(precision) for name, precision in OURS.items()}
    peer = None if options.ours else transformers_model()
    questions = [engines["pretune"].prompt(question) for question in QUESTIONS]
    for batch in options.batches:
        prompts = questions[:batch]
        jobs: dict[str, Any] = {
            name: partial(ours, engine, prompts, options.new_tokens)
            for name, engine in engines.items()
        }
        if peer is not None:
            jobs["transformers"] = partial(theirs, peer, prompts, options.new_tokens)
        first = {name: job() for name, job in jobs.items()}  # which warms up, too
        rates: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.rounds):
            for name, job in jobs.items():
                rates[name].append(batch * options.new_tokens / seconds(job))
        print("\n" + table(f"greedy, batch {batch}", rates, "pretune", "tokens/s", digits=1))
        own, total = first.pop("pretune"), batch * options.new_tokens
        for name, other in first.items():
            pairs = list(zip(own, other, strict=True))
            same = sum(a == b for a, b in pairs)
            tokens = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=True))
            print(
                f"the same tokens as {name}: {tokens} of {total}, in {same} of {batch} texts",
                flush=True,
            )
    asked = json.dumps(questions)
    settings = ("--new-tokens", str(options.new_tokens), "--prompts", asked, "--peak")
    peaks = {name: [peak_of(__file__, *settings, name)] for name in jobs}
    print("\n" + table("peak memory, batch 8", peaks, "pretune", "MiB", lower=True), flush=True)


def peak(name: str, prompts: Sequence[Sequence[int]], count: int) -> None:
    """Print the peak memory of this process, after it has loaded the model and written once."""
    if name in OURS:
        ours(writer(OURS[name]), prompts, count)
    else:
        theirs(transformers_model(), prompts, count)
    say_peak()


def ask(options: argparse.Namespace) -> None:
    """Accuracy without an example and with five."""
    data, model = Path(os.environ["PRETUNE_DATA"]), pretune.load(NAME)
    for name, (file, train, template, answers) in PROMPTS.items():
        begun = time.perf_counter()
        result = pretune.prompt(
            model,
            data / file,
            train=data / train,
            template=template,
            answers=answers,
            shots=(0, 5),
            seeds=range(3),
            limit=options.limit,
            score=options.score,
        )
        took = time.perf_counter() - begun
        answer, share = result.majority
        print(f"\n{name}, {result.count} questions, {options.score}, {took:.0f} s")
        print(f"always '{answer}': {share:.4f}")
        for shots, cells in result.of_shots().items():
            accuracies = [cell.accuracy for cell in cells]
            print(
                f"{shots} shots: {statistics.mean(accuracies):.4f} "
                + str([round(a, 4) for a in accuracies]),
                flush=True,
            )
            record(f"{name}, {shots} shots", "accuracy", {"pretune": accuracies}, "pretune")


def split(folder: Path, rows: int | None) -> tuple[Path, Path]:
    """Files to train on and to measure with: 100 rows are held back."""
    source = Path(os.environ["PRETUNE_DATA"]) / "instruct" / "train.jsonl"
    lines = [
        line
        for line in source.read_text(encoding="utf-8").splitlines()
        if json.loads(line)["source"] == "llms-from-scratch"
    ]
    random.Random(0).shuffle(lines)  # noqa: S311 - nobody is to be kept from guessing it
    held = 100 if rows is None else max(2, rows // 4)
    parts = {"test": lines[:held], "train": lines[held:][:rows]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")
    return folder / "train.jsonl", folder / "test.jsonl"


def tune(options: argparse.Namespace) -> None:
    """Held-out figures and ten replies before and after LoRA."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train, test = split(folder, options.train_rows)
        chosen = {"max_length": 256, "max_new_tokens": 64, "temperature": 0}
        before = pretune.load(NAME, task=Instruct(InstructOptions(**chosen)))
        asked = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()[:10]]
        questions = ["\n".join(filter(None, (r["instruction"], r["input"]))) for r in asked]
        told = {"before": measured(before, test, questions)}
        begun = time.perf_counter()
        result = pretune.train(
            "instruct",
            {
                "model.from": NAME,
                "data.train": str(train),
                "data.validation": str(test),
                "task": {"name": "instruct", **chosen, "samples": 0},
                "train.lora": {"rank": 8, "alpha": 16},
                "train.epochs": options.epochs,
                "train.batch_tokens": 1024,
                "train.learning_rate": 5e-4,
                "train.warmup": 10,
                "output": str(folder / "run"),
            },
            quiet=True,
        )
        took = time.perf_counter() - begun
        # The run wrote no replies in its evaluations; here they count.
        written = InstructOptions(**chosen).samples
        after = pretune.load(result.folder, options={"samples": written})
        told["after"] = measured(after, test, questions)
    peak_mib = peak_memory_mb(torch.device("cpu"))
    print(
        f"\ntrained on {train.name} in {took:.0f} s; peak memory of all of this {peak_mib:,.0f} MiB"
    )
    for when, (metrics, _) in told.items():
        print(when, {n: round(v, 4) for n, v in metrics.items()}, flush=True)
        for figure in ("loss", "exact_match", "rouge_l"):
            record(f"{figure} {when}", figure, {"pretune": [metrics[figure]]}, "pretune")
    for i, row in enumerate(asked):
        print(f"\n> {questions[i]}\n  given:  {row['output']}")
        for when, (_, replies) in told.items():
            print(f"  {when}: {replies[i]}")


def measured(
    bundle: Any, test: Path, questions: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Held-out figures, and the likeliest reply to each question."""
    metrics = pretune.evaluate(bundle, test).metrics
    engine = TextGenerator.of(bundle)
    replies = engine.generate([*questions], Decoding(temperature=0, max_new_tokens=64))
    return dict(metrics), [reply.text.strip() for reply in replies]


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {"generate": generate, "prompt": ask, "tune": tune}
    parser.add_argument("--parts", nargs="+", choices=[*parts], default=[*parts])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=300, help="questions of each data set")
    parser.add_argument("--score", default="likelihood")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-rows", type=int, help="fewer, for a trial")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=json.loads, help=argparse.SUPPRESS)
    if "--peak" in sys.argv:
        options = parser.parse_args()
        peak(options.peak, options.prompts, options.new_tokens)
        return
    options = parse(parser)
    torch.manual_seed(0)
    for part in options.parts:
        parts[part](options)


if __name__ == "__main__":
    main()
