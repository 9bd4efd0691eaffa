"""Encoders of other families than BERT, beside transformers: fine-tuning, answers, and memory.

    PRETUNE_DATA=FOLDER python bench/families.py
    PRETUNE_DATA=FOLDER python bench/families.py --families modernbert --parts answer --texts 96

RoBERTa, ModernBERT and DeBERTa-v3 of one size: 6 layers, 384 wide, with MiniLM's vocabulary and
random weights (how fast they are does not depend on the values), the same in both engines. All of
it is float32, in one process, in turns; medians are compared.

    train     MRPC, batches of 32, AdamW: pretune beside transformers' Trainer with batches of
              similar length; examples a second after the first updates
    answer    sentences of SST-2 and `emotion`, and passages of SQuAD, at most 256 tokens: pretune's
              `Predictor` beside transformers with padded batches of 32, sorted by length; both
              tokenize, and the answers have to agree

Memory is that of a process of its own for each engine, at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from clock import WARM_UP, in_turns, peak_of, run_ours, run_trainer, say_peak
from inference import Answers, Text, measure_many, pretune_answers, read_texts, sorted_answers
from machine import parse, table
from peer import build_trainer

OURS, TRAINER, SORTED = "pretune", "Trainer, length", "transformers, sorted"
#: Examples an update.
BATCH = 32
#: The layers of all of them, and what is particular to each.
SIZES: dict[str, Any] = {"num_hidden_layers": 6, "hidden_size": 384}
FAMILIES: dict[str, dict[str, Any]] = {
    "roberta": {
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "modernbert": {"num_attention_heads": 6, "intermediate_size": 1152},
    "deberta-v2": {
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "type_vocab_size": 0,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
    },
}
#: What is answered.
TEXTS = ("sst2", "emotion", "squad")


def save_model(family: str, folder: Path) -> None:
    """Save random weights with a head of two classes, as transformers saves them."""
    import transformers

    from pretune.checkpoints.source import find_source

    tokenizer = transformers.AutoTokenizer.from_pretrained(find_source("minilm"))
    marks = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls")}
    marks |= {"sep_token_id": tokenizer.sep_token_id, "bos_token_id": None, "eos_token_id": None}
    sizes = {**SIZES, **FAMILIES[family], "vocab_size": len(tokenizer), "num_labels": 2}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **sizes, **marks)
    kind = transformers.AutoModelForSequenceClassification
    kind.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # These models know no segments, and transformers' ModernBERT takes none.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    file.write_text(json.dumps(settings), encoding="utf-8")


def recipe_of(folder: Path, data: Path, steps: int) -> Any:
    """What is trained, as we say it."""
    from pretune.recipe.recipe import Recipe

    return Recipe.load(
        "mrpc",
        {
            "data.train": str(data / "train.tsv"),
            "data.validation": None,
            "model.from": str(folder),
            "train.max_steps": WARM_UP + steps,
        },
    )


def trainer_of(engine: str, folder: Path, data: Path, steps: int) -> Callable[[], float]:
    """Prepare a training; what is returned gives examples a second."""
    if engine == OURS:
        return run_ours(recipe_of(folder, data, steps), steps, tokens=False)
    trainer = build_trainer(data, "length", max_steps=WARM_UP + steps, source=str(folder))
    return lambda: run_trainer(trainer, steps, BATCH)


def answers_of(engine: str, folder: Path) -> Answers:
    """Texts in, probabilities out."""
    return pretune_answers(folder, "float32") if engine == OURS else sorted_answers(folder)


def mixed_texts(count: int) -> list[Text]:
    """As many texts of each kind, in no order."""
    texts = [text for name in TEXTS for text in read_texts(name, -(-count // len(TEXTS)))]
    random.Random(0).shuffle(texts)  # noqa: S311 - nobody is to be kept from guessing it
    return texts[:count]


def measure(part: str, family: str, folder: Path, options: argparse.Namespace) -> None:
    """Speed and memory of all engines."""
    data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
    engines = (OURS,) if options.ours else (OURS, TRAINER if part == "train" else SORTED)
    if part == "train":
        what, unit = f"{family}: training, MRPC", "examples/s"
        runs = {engine: trainer_of(engine, folder, data, options.steps) for engine in engines}
        rates = in_turns(runs, options.rounds)
    else:
        what, unit = f"{family}: answers to {options.texts} texts", "texts/s"
        answering = {engine: answers_of(engine, folder) for engine in engines}
        rates = measure_many(what, mixed_texts(options.texts), answering, options.rounds)
    print("\n" + table(what, rates, OURS, unit, digits=1), flush=True)
    if options.no_memory:
        return
    settings = ["--parts", part, "--model", str(folder), "--texts", str(options.texts)]
    settings += ["--steps", str(min(options.steps, 12))]
    peaks = {engine: [peak_of(__file__, *settings, "--only", engine)] for engine in engines}
    print("\n" + table(f"{what}: memory", peaks, OURS, "MiB", lower=True), flush=True)


def once(options: argparse.Namespace) -> None:
    """Run one engine once and print its memory."""
    if options.parts == ["train"]:
        data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
        trainer_of(options.only, options.model, data, options.steps)()
    else:
        answers_of(options.only, options.model)(mixed_texts(options.texts))
    say_peak()


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("train", "answer")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--steps", type=int, default=20, help="updates timed")
    parser.add_argument("--texts", type=int, default=192, help="answered")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--only", choices=(OURS, TRAINER, SORTED), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parse(parser)
    if "PRETUNE_DATA" not in os.environ:
        sys.exit(f"set PRETUNE_DATA to a folder with mrpc, {', '.join(TEXTS)}")
    if options.only:
        once(options)
        return
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        for family in options.families:
            folder = Path(place) / family
            save_model(family, folder)
            for part in options.parts:
                measure(part, family, folder, options)


if __name__ == "__main__":
    main()
