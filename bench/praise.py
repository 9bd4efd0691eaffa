"""Does reinforcement learning do what it says? A small GPT-2 learns to write praise.

Everything is made here, from PRETUNE_DATA/sst2 (film reviews) and PRETUNE_DATA/emotion:

1. a GPT-2 of a few million parameters, pre-trained on the reviews;
2. a classifier of praise and blame, trained on one half of the reviews, whose log-odds are the
   reward;
3. two judges that no training sees: a classifier trained on the other half of the reviews, and one
   trained on another collection (joy and love against anger, fear and sadness);
4. `ppo` with three seeds, `grpo`, `rloo`, and `dpo` on pairs of replies that the GPT-2 itself
   wrote.

The prompts are the first words of reviews; those of the 400 that are measured begin no review of
the training data. The table says for each model how many of its replies are praise by the reward's
classifier, in how many of these a judge agrees, how far the model is from the GPT-2 (KL, in nats a
reply), and distinct-2. A chart shows reward against KL over the evaluations of each run.

    PRETUNE_DATA=FOLDER python bench/praise.py [--output runs/praise] [--seeds 3]

It takes about an hour of two cores. What is finished is not made again, so it may be interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse
from trained import placed, run

import pretune

#: Words of a prompt, and how many prompts are held out.
WORDS, HELD_OUT = 3, 400
#: Tokens of a reply, at most.
LONGEST = 24
#: Which feelings count as good.
FEELINGS = {"joy": 1, "love": 1, "anger": 0, "fear": 0, "sadness": 0}
REWARD, JUDGES = "reward", ("judge-reviews", "judge-feelings")
#: What the methods have in common.
SHARED: dict[str, Any] = {
    "task.template": "plain",
    "task.max_length": 64,
    "task.max_new_tokens": LONGEST,
    "data.validation": "{output}/held-out.jsonl",
    "data.columns": {},
    "model.from": "{output}/gpt2",
    "train.schedule": "constant",
    "train.warmup": 20,
}
#: Length keeps replies from shrinking to a word or two of praise.
REWARDS: dict[str, Any] = {
    "task.reward": [
        {"run": "{output}/reward", "label": "positive", "text": "both", "name": "praise"},
        {"length": 12, "unit": "tokens", "weight": 2.0, "name": "length"},
    ],
    "task.end_penalty": 1.0,
    "task.samples": HELD_OUT,
    "data.train": "{output}/prompts.jsonl",
}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {
        "task.rollout": 256,
        "task.beta": 0.15,
        "task.target_kl": 7.0,
        "task.kl_horizon": 2000,
        "task.gae_lambda": 1.0,
        "train.batch_size": 128,
        "train.learning_rate": 1e-4,
        "train.max_steps": 320,
        "train.eval_every": 40,
    },
    "grpo": {
        "task.rollout": 32,
        "task.group": 8,
        "task.beta": 0.3,
        "train.batch_size": 128,
        "train.learning_rate": 1e-4,
        "train.max_steps": 160,
        "train.eval_every": 20,
    },
    "rloo": {
        "task.rollout": 64,
        "task.group": 4,
        "task.beta": 0.25,
        "train.batch_size": 128,
        "train.learning_rate": 2e-4,
        "train.max_steps": 160,
        "train.eval_every": 20,
    },
}
PREFERENCES: dict[str, Any] = {
    "task.beta": 0.3,
    "data.train": "{output}/pairs.jsonl",
    "data.validation": 0.05,
    "train.batch_size": 32,
    "train.learning_rate": 1e-4,
    "train.max_steps": 300,
    "train.eval_every": 50,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/praise"))
    parser.add_argument("--seeds", type=int, default=3, help="of ppo")
    options = parse(parser)
    data, output = Path(os.environ["PRETUNE_DATA"]), options.output

    make_data(data, output)
    train_starts(data, output)
    runs = {f"ppo, seed {seed}": ("ppo", seed) for seed in range(options.seeds)}
    runs |= {name: (name, 0) for name in ("grpo", "rloo", "dpo")}
    folders = {"GPT-2 before": output / "gpt2"}
    for title, (method, seed) in runs.items():
        folders[title] = train_method(output, method, seed)
    found = [measure(output, title, folder) for title, folder in folders.items()]
    write_table(output, found)
    draw(output, {title: folders[title] for title in runs}, found)


# Data


def make_data(data: Path, output: Path) -> None:
    """Cut the reviews in two halves and into prompts, and give both collections the same labels."""
    output.mkdir(parents=True, exist_ok=True)
    train, held = (list(rows(data / "sst2" / name)) for name in ("train.tsv", "dev.tsv"))
    write_rows(output / "half-1.tsv", train[::2])
    write_rows(output / "half-2.tsv", train[1::2])
    for name in ("train", "validation"):
        feelings = [
            {"sentence": row["text"], "label": FEELINGS[row["label"]]}
            for row in rows(data / "emotion" / f"{name}.tsv")
            if row["label"] in FEELINGS
        ]
        write_rows(output / f"feelings-{name}.tsv", feelings[:7000])
    # No held-out prompt begins a review that was trained on.
    known = prompts(train)
    new = sorted(set(prompts(held)) - set(known), key=lambda text: zlib.crc32(text.encode()))
    write_lines(output / "prompts.jsonl", [{"prompt": text} for text in known])
    write_lines(output / "held-out.jsonl", [{"prompt": text} for text in new[:HELD_OUT]])


def rows(path: Path) -> Iterable[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)


def write_rows(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    lines = [f"{row['sentence']}\t{row['label']}\n" for row in found]
    path.write_text("".join(["sentence\tlabel\n", *lines]), encoding="utf-8")


def write_lines(path: Path, found: Iterable[Mapping[str, Any]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8"
    )


def prompts(reviews: Iterable[Mapping[str, Any]]) -> list[str]:
    """The first words of reviews that go on after them, each once."""
    words = [review["sentence"].split() for review in reviews]
    return [*dict.fromkeys(" ".join(own[:WORDS]) for own in words if len(own) >= WORDS + 2)]


def held_out(output: Path) -> list[str]:
    lines = (output / "held-out.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


# Runs


def train_starts(data: Path, output: Path) -> None:
    """The GPT-2, the reward's classifier and the judges."""
    reviews = data / "sst2"
    sizes = {"n_layer": 4, "n_embd": 192, "n_head": 6, "n_positions": 64}
    language_model = {
        "data.train": str(reviews / "train.tsv"),
        "data.validation": str(reviews / "dev.tsv"),
        "data.columns": {"text": "sentence"},
        "task.max_length": 64,
        "task.boundaries": True,
        "model.from": "gpt2-small",
        "model.config": sizes,
        "model.tokenizer": None,
        "model.train_tokenizer": {"kind": "bpe", "vocab_size": 4000},
        "train.epochs": 12,
        "train.batch_tokens": 2048,
        "train.accumulate": 1,
        "train.learning_rate": 2e-3,
        "train.warmup": 50,
        "train.eval_every": "epoch",
        "train.save_every": None,
    }
    run(output, "gpt2", "gpt2-pretrain", language_model)
    classifiers = {
        REWARD: ("half-1.tsv", str(reviews / "dev.tsv")),
        JUDGES[0]: ("half-2.tsv", str(reviews / "dev.tsv")),
        JUDGES[1]: ("feelings-train.tsv", str(output / "feelings-validation.tsv")),
    }
    for name, (train, validation) in classifiers.items():
        settings = {
            "data.train": str(output / train),
            "data.validation": validation,
            "model.from": "minilm",
            "train.epochs": 2,
            "train.learning_rate": 5e-5,
        }
        run(output, name, "sst2", settings)


def train_method(output: Path, method: str, seed: int) -> Path:
    if method != "dpo":
        settings = {**SHARED, **REWARDS, **METHODS[method], "seed": seed}
        return run(output, f"{method}-{seed}", method, settings)
    if not (output / "pairs.jsonl").is_file():
        write_lines(output / "pairs.jsonl", sampled_pairs(output))
    shared = {key: value for key, value in SHARED.items() if key != "task.max_new_tokens"}
    return run(output, f"dpo-{seed}", "dpo", {**shared, **PREFERENCES, "seed": seed})


def sampled_pairs(output: Path, samples: int = 4) -> list[dict[str, str]]:
    """The best and the worst of some replies that the GPT-2 itself writes to each prompt."""
    lines = (output / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines]
    written = replies(output / "gpt2", asked, samples=samples, seed=1)
    scores = log_odds(output / REWARD, texts([p for p in asked for _ in range(samples)], written))
    pairs = []
    for number, prompt in enumerate(asked):
        own = range(number * samples, (number + 1) * samples)
        best, worst = max(own, key=scores.__getitem__), min(own, key=scores.__getitem__)
        if written[best].strip() and written[worst].strip() and scores[best] > scores[worst] + 1:
            pairs.append({"prompt": prompt, "chosen": written[best], "rejected": written[worst]})
    return pairs


# Measuring


def replies(folder: Path, asked: Sequence[str], *, samples: int = 1, seed: int = 0) -> list[str]:
    """What a model writes, drawn from its whole distribution."""
    written = pretune.generate(
        folder,
        asked,
        temperature=1.0,
        max_new_tokens=LONGEST,
        samples=samples,
        seed=seed,
        batch_size=128,
    )
    return [reply.text for reply in written]


def texts(asked: Sequence[str], written: Sequence[str]) -> list[str]:
    return [f"{prompt} {reply.strip()}" for prompt, reply in zip(asked, written, strict=True)]


def log_odds(folder: Path, judged: Sequence[str]) -> list[float]:
    """The log-odds that texts are praise, by a classifier."""
    import math

    answers: Any = pretune.predict(folder, judged)
    chances = [answer.scores["positive"] for answer in answers]
    return [math.log(max(p, 1e-7) / max(1 - p, 1e-7)) for p in chances]


def measure(output: Path, title: str, folder: Path) -> dict[str, Any]:
    """The figures of one model, all on the same held-out prompts."""
    from pretune.bundle.bundle import load
    from pretune.tasks.alignment.rloo import Rloo, RlooOptions

    # By the classifiers: replies to the held-out prompts.
    asked = held_out(output)
    judged = texts(asked, replies(folder, asked))
    reward = log_odds(output / REWARD, judged)
    praised = [number for number, score in enumerate(reward) if score > 0]
    row: dict[str, Any] = {
        "model": title,
        "praise": len(praised) / len(asked),
        "log_odds": sum(reward) / len(reward),
    }
    for name in JUDGES:
        other = log_odds(output / name, judged)
        row[f"{name} agrees"] = sum(other[number] > 0 for number in praised) / max(len(praised), 1)
        row[f"{name} praise"] = sum(score > 0 for score in other) / len(other)
    # By the figures of an evaluation, the same for every method.
    shared = placed({**SHARED, **REWARDS}, output)
    options = {key.removeprefix("task."): v for key, v in shared.items() if key.startswith("task.")}
    task = Rloo(RlooOptions(**options, reference=str(output / "gpt2")))
    figures = pretune.evaluate(load(folder, task=task), output / "held-out.jsonl").metrics
    row |= {name: figures[name] for name in ("reward", "kl", "distinct_2", "reply_tokens")}
    print(row, flush=True)
    return row


def write_table(output: Path, found: Sequence[Mapping[str, Any]]) -> None:
    names = list(found[0])
    with (output / "praise.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, names)
        writer.writeheader()
        writer.writerows(found)
    cells = [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in found]
    for line in (names, ["---"] * len(names), *cells):
        print("| " + " | ".join(line) + " |")


def draw(output: Path, runs: Mapping[str, Path], measured: Sequence[Mapping[str, Any]]) -> None:
    """Mean reward against KL: over the evaluations of each run, and of what only `measure` sees."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for title, folder in runs.items():
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found = [
            (line["validation/kl"], line["validation/reward"])
            for line in map(json.loads, lines)
            if "validation/kl" in line and "validation/reward" in line
        ]
        own = [(row["kl"], row["reward"]) for row in measured if row["model"] == title]
        kl, reward = zip(*(found or own), strict=True)
        axes.plot(kl, reward, marker="o", markersize=4, label=title)
    axes.set(xlabel="KL to the GPT-2 at the start (nats a reply)", ylabel="mean reward")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output / "praise.png", dpi=110)


if __name__ == "__main__":
    main()
