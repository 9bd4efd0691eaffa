"""Learning from preferences (DPO, PPO) in tokens a second; DPO beside TRL's DPOTrainer.

    PRETUNE_DATA=FOLDER python bench/align.py
    PRETUNE_DATA=FOLDER python bench/align.py --shape small --part dpo --steps 8 --rounds 1

Shape `small` is a GPT-2 of 10M parameters (10 layers, 256 wide, a vocabulary of 8,192 learned from
the data), `gpt2` one of 124M with GPT-2's own vocabulary; both with random weights, without
dropout, in float32. `tiny` is for trying the bench. The data are the English pairs of
PRETUNE_DATA/preference, in our template; a longer reply than fits into 512 tokens is cut.

`dpo`: the same token ids, batch, optimizer (AdamW, clipping at 1.0) and initial weights in one
process, in turns. Counted are the tokens of prompts and replies that were trained on, never pads.
TRL runs with the log-probabilities of its reference computed beforehand (`precomputed`: ours are,
too, and neither is timed), and with the reference in memory, which is its default. Its gradient
checkpointing and bf16 are off, as ours are.

`ppo`: runs of ours in processes of their own, whose reward is a length: the shares of the time, and
the peak memory, whole and with LoRA, beside supervised tuning (`instruct`) with the same LoRA,
batch and prompts. `imports` is a process that trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import QUIET, Clock, in_turns, prepared
from machine import parse, record, table

OURS = "pretune"
#: Updates before the clock starts.
WARM = 1
#: Positions of a model: with a token more than we read, as TRL reads the last one too.
CONTEXT, LENGTH = 512, 511
#: Tokens of a reply that `ppo` writes.
REPLY = 48
LORA = {"rank": 8, "alpha": 16}
#: What runs in processes of its own, by its name in tables.
KINDS = {
    "imports": "nothing",
    "instruct, LoRA": "instruct-lora",
    "ppo, LoRA": "ppo-lora",
    "ppo": "ppo",
}


@dataclass(frozen=True)
class Shape:
    """What is trained, and how long."""

    config: dict[str, int]
    pairs: int  # of an update of `dpo`
    dpo_steps: int  # updates timed
    rounds: int
    rollout: int  # replies of a rollout of `ppo`, which takes 4 passes of batches of 8
    rollouts: int


SHAPES = {
    "small": Shape({"n_layer": 10, "n_embd": 256, "n_head": 4}, 8, 4, 3, 32, 1),
    "gpt2": Shape({}, 4, 2, 2, 8, 1),
    "tiny": Shape({"n_layer": 2, "n_embd": 32, "n_head": 2}, 2, 2, 1, 8, 1),
}
#: What is measured by default.
USUAL = ("small", "gpt2")


class TokenClock(Clock):
    """Notes when each update ended, and how many tokens there were until then."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0
        self.counts: list[int] = []

    def tick(self) -> bool:
        """An update has ended; False: go on."""
        self.counts.append(self.tokens)
        return super().tick()

    def per_second(self) -> float:
        """Tokens a second after the warm-up."""
        seconds = self.times[-1] - self.times[WARM - 1]
        return (self.counts[-1] - self.counts[WARM - 1]) / seconds


def make_model(place: Path, data: Path, shape: str) -> None:
    """Write the data, and a model of random weights that says it was trained by `instruct`."""
    from pretune.bundle.bundle import load, save
    from pretune.tasks.dialogue.dialogue import Instruct, InstructOptions
    from pretune.tokenizers.load import load_tokenizer
    from pretune.tokenizers.train import train_tokenizer

    rows = [json.loads(line) for line in (data / "preference/train.jsonl").open(encoding="utf-8")]
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows if en(row)]
    # The sources stand one after the other.
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    write(place / "pairs.jsonl", rows)
    replies = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    write(place / "replies.jsonl", replies)
    if shape == "gpt2":
        tokenizer = load_tokenizer(data / "vocab/gpt2")
        tokenizer.settings |= {"eos_token": "<|endoftext|>"}
    else:
        tokenizer = train_tokenizer([text for row in rows for text in row.values()], "bpe", 8192)
    torch.manual_seed(0)
    task = Instruct(InstructOptions(max_length=LENGTH))
    config = {"n_positions": CONTEXT, **SHAPES[shape].config}
    bundle = load("gpt2-small", task=task, tokenizer=tokenizer, config=config)
    (place / "model").mkdir()
    save(bundle, place / "model")


def en(row: dict[str, Any]) -> bool:
    """Whether a row is an English pair without earlier turns."""
    return row["lang"] == "en" and not row["history"]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_of(place: Path, task: dict[str, Any], data: str, train: dict[str, Any]) -> Any:
    """What is trained, as we say it."""
    from pretune.recipe.recipe import Recipe

    return Recipe.of(
        {
            "task": {"max_length": LENGTH, **task},
            "model": {"from": str(place / "model"), "dropout": 0.0, "attention_dropout": 0.0},
            "data": {"train": str(place / data), "validation": None},
            "train": {"learning_rate": 1e-5, "schedule": "constant", "weight_decay": 0.0, **train},
            "output": str(place / "run"),
        },
        "bench",
    )


# DPO


def pairs_for_dpo(place: Path, shape: Shape, steps: int) -> tuple[Any, Any, Any, Any]:
    """Recipe, task, bundle and the features of as many pairs as are trained on."""
    train = {"batch_size": shape.pairs, "max_steps": WARM + steps}
    lines = (place / "pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few = "".join(lines[: shape.pairs * (WARM + steps)])
    (place / "few.jsonl").write_text(few, encoding="utf-8")
    recipe = recipe_of(place, {"name": "dpo"}, "few.jsonl", train)
    return (recipe, *prepared(recipe))


def run_ours(place: Path, shape: Shape, steps: int) -> Callable[[], float]:
    """Prepare our trainer; what is returned trains and gives tokens a second."""
    from pretune.inference.reference import reference_scores, with_scores
    from pretune.training.loop import Trainer

    recipe, task, bundle, features = pairs_for_dpo(place, shape, steps)
    scores = reference_scores(task, bundle.model, features, device=torch.device("cpu"))
    features, forward = with_scores(features, scores), task.forward

    def run() -> float:
        clock = TokenClock()

        def counted(model: Any, batch: Any) -> Any:
            # The last token of a sequence is predicted, but not read.
            clock.tokens += batch.layout.total + batch.num_sequences
            return forward(model, batch)

        task.forward = counted
        Trainer(task, bundle.model, features, options=recipe.train, should_stop=clock.tick).fit()
        return clock.per_second()

    return run


def rows_of(features: Any) -> list[dict[str, list[int]]]:
    """The same pairs as TRL tokenizes them."""
    from pretune.tasks.losses import IGNORED, NEXT

    rows = []
    for number in range(len(features)):
        batch = features.batch(np.array([number]))
        replies, prompt = [], list[int]()
        for start, length in zip(batch.layout.starts, batch.layout.lengths, strict=True):
            labels = batch.targets[NEXT][start : start + length]
            tokens = batch.tokens[start : start + length].tolist()
            prompt = tokens[: int((labels == IGNORED).sum()) + 1]
            replies.append(labels[labels != IGNORED].tolist())
        rows.append({"prompt_ids": prompt, "chosen_ids": replies[0], "rejected_ids": replies[1]})
    return rows


def run_trl(place: Path, shape: Shape, steps: int, *, precomputed: bool) -> Callable[[], float]:
    """The same for TRL's trainer."""
    import datasets
    import transformers
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows = rows_of(pairs_for_dpo(place, shape, steps)[3])
    clocks: list[TokenClock] = []

    class Ticks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *arguments: Any, **more: Any) -> None:
            clocks[-1].tick()

    class Counting(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
            return dataset  # tokenized already

        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            clocks[-1].tokens += int(inputs["attention_mask"].sum())
            return super()._compute_loss(  # type: ignore[no-untyped-call]
                model, inputs, return_outputs
            )

    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=shape.pairs,
        max_steps=WARM + steps,
        max_length=CONTEXT,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        precompute_ref_log_probs=precomputed,
        gradient_checkpointing=False,
        bf16=False,
        **QUIET,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(place / "model")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    trainer = Counting(
        transformers.AutoModelForCausalLM.from_pretrained(place / "model"),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Ticks())

    def run() -> float:
        clocks.append(TokenClock())
        trainer.train()
        return clocks[-1].per_second()

    return run


def measure_dpo(place: Path, name: str, steps: int, rounds: int, *, peers: bool) -> None:
    """Print a table of tokens a second."""
    shape = SHAPES[name]
    runs = {OURS: run_ours(place, shape, steps)}
    if peers:
        runs |= {
            "TRL, reference precomputed": run_trl(place, shape, steps, precomputed=True),
            "TRL, reference in memory": run_trl(place, shape, steps, precomputed=False),
        }
    rates = in_turns(runs, rounds)
    print("\n" + table(f"dpo, {name}: {shape.pairs} pairs an update", rates, OURS, "tokens/s"))


# PPO


def recipe_for(place: Path, kind: str, shape: Shape) -> Any:
    """A run of `ppo` or `instruct`, perhaps `-lora`, of 8 replies an update."""
    name, _, lora = kind.partition("-")
    train = {
        "batch_size": 8,
        "max_steps": shape.rollouts * 4 * -(-shape.rollout // 8),
        "lora": LORA if lora else None,
        "device": "cpu",
    }
    if name == "instruct":
        return recipe_of(place, {"name": name}, "replies.jsonl", {**train, "batch_tokens": None})
    task = {
        "name": name,
        "max_new_tokens": REPLY,
        "rollout": shape.rollout,
        "passes": 4,
        "reward": {"length": 100},
    }
    return recipe_of(place, task, "replies.jsonl", train)


def timed(seconds: dict[str, float], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that adds the time it takes to `seconds`."""

    @wraps(function)
    def run(*given: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*given, **options)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start

    return run


def train_alone(place: Path, kind: str, shape: Shape) -> None:
    """Train once in this process, and print the parts of its time and its peak memory."""
    from pretune.tasks.alignment.ppo import Ppo
    from pretune.training.loop import Trainer
    from pretune.training.on_policy import OnPolicy
    from pretune.training.run import train_recipe
    from pretune.training.run_result import peak_memory_mb

    seconds: dict[str, float] = {}
    counts = {"written": 0, "trained": 0}
    original = Ppo.experience

    def experience(task: Any, attempts: Any) -> Any:
        made = original(task, attempts)
        counts["written"] += sum(len(attempt.tokens) for attempt in attempts)
        counts["trained"] += task.options.passes * len(made.tokens)
        return made

    setattr(Ppo, "experience", experience)  # noqa: B010 - mypy knows another signature
    watched: tuple[tuple[Any, str, str], ...] = (
        (Ppo, "written", "writing"),
        (Ppo, "scored", "scoring"),
        (OnPolicy, "prepare", "prepare"),
        (Trainer, "fit", "fit"),
    )
    for owner, part, name in watched:
        setattr(owner, part, timed(seconds, name, getattr(owner, part)))
    if kind != "nothing":
        train_recipe(recipe_for(place, kind, shape), overwrite=True, quiet=True)
    peak = peak_memory_mb(torch.device("cpu"))
    print(json.dumps({**seconds, **counts, "peak_mib": peak}))


def show_time(title: str, found: dict[str, float]) -> None:
    """Print the parts of the time of a run of `ppo`."""
    whole = found["fit"]
    updates = whole - found["prepare"]
    parts = {
        "writing replies": found["writing"],
        "scoring them (model and reference)": found["scoring"],
        "updates": updates,
    }
    parts["the rest"] = whole - sum(parts.values())
    print(f"\n{title}: {whole:.1f} s of training")
    for part, own in parts.items():
        print(f"{part:<36} {own:>7.1f} s {own / whole:>6.0%}")
    print(f"{found['written'] / found['writing']:,.0f} tokens/s written")
    print(f"{found['trained'] / updates:,.0f} tokens/s trained, prompts included")
    print(f"{found['written'] / whole:,.0f} written tokens a second of the whole")


def measure_ppo(place: Path, name: str) -> None:
    """Print the parts of the time of runs, and the peak memory of their processes."""
    peaks = {}
    for title, kind in KINDS.items():
        command = [sys.executable, __file__, "--only", kind, "--place", str(place)]
        done = subprocess.run(
            [*command, "--shape", name], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        peaks[title] = found["peak_mib"]
        if kind.startswith("ppo"):
            show_time(f"{title}, {name}", found)
            rates = {OURS: [found["written"] / found["fit"]]}
            record(f"{title}, {name}: written, of the whole", "tokens/s", rates, OURS)
    base = peaks["instruct, LoRA"]
    print(f"\n{'memory, ' + name:<28} {'peak':>10} {'of instruct, LoRA':>18}")
    for title, peak in peaks.items():
        record(f"{title}, {name}: memory", "MiB", {OURS: [peak]}, OURS, lower=True)
        print(f"{title:<28} {peak:>6,.0f} MiB {peak / base:>17.2f}x")


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: small, gpt2")
    parser.add_argument("--part", choices=("dpo", "ppo"), action="append", help="default: both")
    parser.add_argument("--steps", type=int, help="updates of dpo timed; default: of the shape")
    parser.add_argument("--rounds", type=int, help="of dpo; default: of the shape")
    parser.add_argument("--only", choices=KINDS.values(), help="train once, print time and memory")
    parser.add_argument("--place", type=Path, help="of --only: the folder of the model")
    options = parse(parser)
    if options.only:
        train_alone(options.place, options.only, SHAPES[options.shape[0]])
        return
    if "PRETUNE_DATA" not in os.environ:
        sys.exit("set PRETUNE_DATA to a folder with preference/train.jsonl and vocab/gpt2")
    for name in options.shape or USUAL:
        shape = SHAPES[name]
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            make_model(place, Path(os.environ["PRETUNE_DATA"]), name)
            if "dpo" in (options.part or ["dpo"]):
                steps, rounds = options.steps or shape.dpo_steps, options.rounds or shape.rounds
                measure_dpo(place, name, steps, rounds, peers=not options.ours)
            if "ppo" in (options.part or ["ppo"]):
                measure_ppo(place, name)


if __name__ == "__main__":
    main()
