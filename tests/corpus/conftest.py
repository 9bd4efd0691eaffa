from __future__ import annotations

import hashlib
import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretune.corpus import pipeline
from pretune.corpus.staged import Result, RunTasks, WorkSizes
from pretune.errors import PretuneError

TEXTS = [
    "The good film! Was it bad? No: it was unaffable. Mr. Smith paid 3.14 dollars, e.g. in May.",
    "这部电影很好看。“不好！”他说。中国的电影……",
]


@pytest.fixture(scope="session")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE whose tokens begin with the space before a word."""
    engine = RustTokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    engine.train_from_iterator(TEXTS, trainer)
    folder = tmp_path_factory.mktemp("bpe")
    engine.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 documents, a tenth of them duplicates."""
    words = ["the", "good", "film", "bad", "un", "好", "电影", "不", "is", "e.g.", "seen"]
    generator = random.Random(0)
    texts: list[str] = []
    for _ in range(1000):
        if texts and generator.random() < 0.1:
            texts.append(generator.choice(texts))
            continue
        lines = [
            " ".join(generator.choices(words, k=generator.randint(1, 12)))
            + generator.choice([". ", "!", "。", "?"])
            for _ in range(generator.randint(1, 5))
        ]
        texts.append("\n".join(lines))
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_here(
    function: Callable[[Any, Any], Result],
    shared: Any,
    tasks: Sequence[Any],
    done: Callable[[int, Result], None],
) -> None:
    """Run the tasks of a stage in this process, from the last to the first; as `RunTasks`."""
    # What crosses to a worker is pickled.
    function, shared = _sent((function, shared))
    errors: list[Exception] = []
    for number in reversed(range(len(tasks))):
        try:
            done(number, function(shared, _sent(tasks[number])))
        except PretuneError as error:
            errors.append(error)
    if errors:
        raise errors[-1]


def _sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 # our own


@contextmanager
def tasks_here(workers: int | None, folder: Path) -> Iterator[RunTasks]:
    """In the place of `tasks_on_ray`, which takes long to start."""
    yield run_here


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`engine="ray"` runs its tasks in this process, with small parts of the work."""

    def choose(**sizes: int) -> None:
        small = {"piece": 3000, "run": 100, "partition": 800, "rest": 5, "states": 150, **sizes}
        # Hundreds of small files, each flushed to the disk, would take minutes.
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        monkeypatch.setattr(pipeline, "tasks_on_ray", tasks_here)
        monkeypatch.setattr(pipeline, "cluster_size", lambda: 1)
        monkeypatch.setattr(pipeline, "_LEAST_PIECE", 1)
        monkeypatch.setattr(pipeline, "SIZES", WorkSizes(**small))

    choose()
    return choose
