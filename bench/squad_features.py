"""SQuAD to windows of tokens by pretune and by transformers with `datasets`: examples a second.

    PRETUNE_DATA=FOLDER python bench/squad_features.py [--rounds 5] [--limit N]

Both read the same questions with the same tokenizer (MiniLM's, from the extra `minilm`) and make
windows of 384 tokens that share 128 with the next, with the tokens of the answers. transformers
does it as its example `run_qa.py`: a fast tokenizer with `return_overflowing_tokens` in
`datasets.map`, batches of 1,000, no cache. Both engines are the Rust tokenizers, with as many
threads as there are cores. The engines take turns; the median counts, and that both find the same
windows and answers is checked first.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import datasets
import transformers

sys.path.insert(0, str(Path(__file__).parent))
from machine import parse, table

from pretune.checkpoints.source import find_source
from pretune.data.batch import FeatureSet
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.tasks.features import featurize
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from pretune.tokenizers.load import load_tokenizer

LENGTH, OVERLAP = 384, 128


def ours(records: Records) -> Callable[[], FeatureSet]:
    """All features, as a run makes them."""
    tokenizer = load_tokenizer(find_source("minilm"))
    task = Answerer(AnswerOptions(max_length=LENGTH, doc_stride=OVERLAP))

    def made() -> FeatureSet:
        found = featurize(task, records, tokenizer)
        assert isinstance(found, FeatureSet)  # noqa: S101 - of records, not of a corpus
        return found

    return made


def theirs(records: Records) -> Callable[[], datasets.Dataset]:
    """`datasets.map` with the function of the example for question answering."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(find_source("minilm"))
    columns = ("question", "context", "answers")
    table = datasets.Dataset.from_dict({c: [r[c] for r in records.rows] for c in columns})
    datasets.disable_caching()
    datasets.disable_progress_bars()

    def windows(examples: dict[str, list[Any]]) -> Any:
        found = tokenizer(
            examples["question"],
            examples["context"],
            truncation="only_second",
            max_length=LENGTH,
            stride=OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        samples, mapping = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping")
        found["start_positions"], found["end_positions"] = [], []
        for i, offsets in enumerate(mapping):
            answer = examples["answers"][samples[i]]
            sources = found.sequence_ids(i)
            low = sources.index(1)
            high = len(sources) - 1 - sources[::-1].index(1)
            first = answer["answer_start"][0]
            after = first + len(answer["text"][0])
            if offsets[low][0] > first or offsets[high][1] < after:
                found["start_positions"].append(0)
                found["end_positions"].append(0)
                continue
            while low < len(offsets) and offsets[low][0] <= first:
                low += 1
            while offsets[high][1] >= after:
                high -= 1
            found["start_positions"].append(low - 1)
            found["end_positions"].append(high + 1)
        return found

    return lambda: table.map(windows, batched=True, remove_columns=list(columns))


def compare(mine: FeatureSet, other: datasets.Dataset) -> None:
    """Both have the same tokens; and how many answers are at the same tokens."""
    if len(mine) != len(other):
        raise SystemExit(f"{len(mine)} windows here, {len(other)} there")
    same = 0
    for i, row in enumerate(other):
        tokens = mine.tokens[mine.starts[i] : mine.starts[i + 1]]
        if tokens.tolist() != row["input_ids"]:
            raise SystemExit(f"window {i} has other tokens")
        ends = (row["start_positions"], row["end_positions"])
        same += (int(mine.targets["start"][i]), int(mine.targets["end"][i])) == ends
    print(f"{len(mine):,} windows, all with the same tokens; {same:,} with the same answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None)
    given = parse(parser)
    path = Path(os.environ["PRETUNE_DATA"]) / "squad" / "train-v1.1.json"
    records = read(path).head(given.limit)
    engines: dict[str, Callable[[], Any]] = {"pretune": ours(records)}
    if not given.ours:
        engines["datasets.map"] = theirs(records)
        compare(*(work() for work in engines.values()))
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(given.rounds):
        for name, work in engines.items():
            start = time.perf_counter()
            work()
            rates[name].append(len(records) / (time.perf_counter() - start))
    print("\n" + table(f"{len(records):,} questions to windows", rates, "pretune", "examples/s"))


if __name__ == "__main__":
    main()
