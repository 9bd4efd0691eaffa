"""Training from a prepared corpus: as from its texts, resumable, in several processes, lean."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pretune
from pretune.bundle.bundle import load
from pretune.corpus.encode import Cleaning
from pretune.corpus.pipeline import Settings, prepare
from pretune.corpus.store import Corpus, StoredDocuments
from pretune.errors import DataError, RunError
from pretune.experiments.plan import plan_run
from pretune.recipe.recipe import Recipe
from pretune.tasks.features import featurize
from pretune.tasks.masked_lm.mask_lm import MaskLm, MaskLmOptions
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.train import train_tokenizer
from pretune.training.data import read_data
from pretune.training.run import resume, train_recipe
from tests.training.groups import STEADY, Together, assert_close, result_of, weights
from tests.training.outcomes import assert_alike, outcome, stopped_after

Make = Callable[..., Recipe]
RAW = Settings(
    cleaning=Cleaning(nfc=False, control=False, spaces=False),
    keep_duplicates=True,
    shard_tokens=500,
)
GPT2 = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 32}
BERT = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def write(path: Path, count: int, seed: int = 0) -> Path:
    """Documents of some lines, as JSON lines."""
    chance = random.Random(seed)
    words = ["the", "good", "bad", "film", "un", "x1", "z"]

    def line() -> str:
        return " ".join(chance.choices(words, k=chance.randint(2, 9))) + "."

    rows = ({"text": "\n".join(line() for _ in range(chance.randint(2, 6)))} for _ in range(count))
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    train_tokenizer(["the good bad film un x1 z."] * 2, "bpe", 280).save(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", 60)


@pytest.fixture(scope="module")
def corpora(
    tmp_path_factory: pytest.TempPathFactory,
    texts: Path,
    bytes_folder: Path,
    tiny_vocab_folder: Path,
) -> dict[str, Path]:
    """The texts, prepared for both tasks."""
    found = {}
    for task, tokenizer in (("causal_lm", bytes_folder), ("mask_lm", tiny_vocab_folder)):
        found[task] = tmp_path_factory.mktemp("corpora") / task
        prepare([texts], tokenizer, found[task], RAW, workers=1)
    return found


@pytest.fixture
def make(corpora: dict[str, Path], tmp_path: Path) -> Make:
    """A recipe that takes a second; keyword arguments with `__` for the dot change it."""

    def made(task: str = "causal_lm", **changes: Any) -> Recipe:
        lm = task == "causal_lm"
        recipe = Recipe.of(
            {
                "task": {"name": task, "max_length": 16},
                "model": {
                    "from": "gpt2-small" if lm else "bert-tiny",
                    "config": GPT2 if lm else BERT,
                    "dropout": 0.1,
                },
                "data": {"train": str(corpora[task]), "validation": 0.2},
                "train": {"max_steps": 8, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
                "output": str(tmp_path / "run"),
            }
        )
        return recipe.changed({key.replace("__", "."): value for key, value in changes.items()})

    return made


CASES: dict[str, dict[str, Any]] = {
    "blocks": {},
    "one stream": {"task__boundaries": False},
    "token budget, two workers": {
        "train__batch_tokens": 100,
        "train__batch_size": None,
        "train__workers": 2,
    },
    "masks": {"task": "mask_lm"},
    "pairs": {"task": "mask_lm", "task__next": "nsp", "task__mask": "words"},
}


@pytest.mark.parametrize("case", CASES)
def test_as_from_the_texts(
    case: str, make: Make, texts: Path, bytes_folder: Path, tiny_vocab_folder: Path, tmp_path: Path
) -> None:
    """Bit for bit the same weights; and the same figures of validation."""
    stored = make(**CASES[case])
    found = train_recipe(stored, quiet=True)
    folder = bytes_folder if stored.task.name == "causal_lm" else tiny_vocab_folder
    raw = stored.changed(
        {
            "data.train": str(texts),
            "model.tokenizer": str(folder),
            "output": str(tmp_path / "raw"),
        }
    )
    expected = train_recipe(raw, quiet=True)
    assert found.metrics == expected.metrics
    assert found.details == expected.details
    one, two = (Path(r.output) / "last" / "model.safetensors" for r in (stored, raw))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_goes_on_as_if_never_stopped(case: str, make: Make, tmp_path: Path) -> None:
    whole = make(output=str(tmp_path / "whole"), **CASES[case])
    train_recipe(whole, quiet=True)
    stopped = whole.changed({"output": str(tmp_path / "stopped")})
    with stopped_after(3):
        train_recipe(stopped, quiet=True)
    resume(stopped.output, quiet=True)
    assert_alike(outcome(stopped.output), outcome(whole.output))


@pytest.mark.parametrize("task", ["causal_lm", "mask_lm"])
def test_several_processes_are_as_one(
    task: str, make: Make, tmp_path: Path, together: Together
) -> None:
    one = make(task, **STEADY, train__batch_size=7, train__max_steps=3, model__dropout=0.0)
    one = one.changed({"model.attention_dropout": 0.0})
    train_recipe(one, quiet=True)
    several = one.changed({"output": str(tmp_path / "several"), "train.parallel": "ddp"})
    together.train(2, several)
    assert_close(several.output, weights(one.output))
    expected = result_of(one.output)["metrics"]
    assert result_of(several.output)["metrics"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_vocab_folder: Path) -> list[Path]:
    """The same number of documents, of few and of many words."""
    found = []
    for words in (100, 800):
        folder = tmp_path_factory.mktemp("lean")
        rows = ({"text": f"{i}. " + "The film. " * words} for i in range(200))
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        prepare([folder / "t.jsonl"], tiny_vocab_folder, folder / "c", workers=1)
        found.append(folder / "c")
    return found


class TestMemory:
    """What a view holds is a few numbers a document or pair, whatever is in those."""

    @pytest.mark.parametrize("kind", ["blocks", pytest.param("pairs", marks=pytest.mark.slow)])
    def test_is_far_below_the_tokens(
        self, kind: str, folders: list[Path], tiny_vocab_folder: Path
    ) -> None:
        options = {"next": "nsp"} if kind == "pairs" else {"next": "none"}
        tokenizer = load_tokenizer(tiny_vocab_folder)
        held = []
        for folder in folders:
            task = MaskLm(MaskLmOptions(max_length=128, **options))  # type: ignore[arg-type]
            documents = StoredDocuments.open(folder)
            documents.check_tokenizer(tokenizer)
            featurize(task, documents, tokenizer)  # what the first call loads is not counted
            gc.collect()
            tracemalloc.start()
            features = featurize(task, documents, tokenizer)
            features.batch(np.arange(0, len(features), len(features) // 7))
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
            assert all(
                not isinstance(array, np.ndarray) or array.nbytes <= 8 * len(features) + 8
                for array in vars(features).values()
            )
        tokens = [Corpus.open(folder).tokens for folder in folders]
        # In memory they take 4 bytes a token and more; here the rest of them is 8 times as many.
        assert held[1] - held[0] < 0.15 * 4 * (tokens[1] - tokens[0])


class TestTokenizers:
    def test_another_one_is_refused_before_anything_is_written(
        self, make: Make, tiny_vocab_folder: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        other.mkdir()
        train_tokenizer(["the other text is longer"] * 2, "bpe", 290).save(other)
        recipe = make(model__tokenizer=str(other))
        with pytest.raises(DataError, match="another tokenizer") as caught:
            train_recipe(recipe, quiet=True)
        assert "pretune prepare" in str(caught.value)
        assert not Path(recipe.output).exists()

    def test_new_tokens_are_another_one(self, make: Make) -> None:
        with pytest.raises(DataError, match="another tokenizer"):
            train_recipe(make(model__new_tokens=["filmography"]), quiet=True)

    def test_that_of_the_corpus_is_taken_for_random_weights(
        self, make: Make, bytes_folder: Path
    ) -> None:
        recipe = make(train__max_steps=1)
        train_recipe(recipe, quiet=True)
        found = load(recipe.output)
        assert found.tokenizer.cuts_as(load_tokenizer(bytes_folder))
        assert found.backbone.config.size("vocab_size") == found.tokenizer.vocab_size

    def test_a_run_goes_on_with_a_corpus_made_with_it(
        self, make: Make, texts: Path, tmp_path: Path
    ) -> None:
        first = make(train__max_steps=1)
        train_recipe(first, quiet=True)
        prepare([texts], first.output, tmp_path / "again", RAW, workers=1)
        second = make(
            data__train=str(tmp_path / "again"),
            model__from=first.output,
            model__config={},
            output=str(tmp_path / "second"),
            train__max_steps=1,
        )
        assert train_recipe(second, quiet=True).steps == 1


class TestValidation:
    def test_a_share_is_the_same_each_time(self, make: Make) -> None:
        one, two = (read_data(make(seed=seed)) for seed in (0, 7))
        for kept, held in (one, two):
            assert isinstance(kept, StoredDocuments)
            assert isinstance(held, StoredDocuments)
            assert sorted([*kept.rows, *held.rows]) == list(range(60))
            assert len(held) == 12
        assert one[1].rows.tolist() == two[1].rows.tolist()  # type: ignore[union-attr]

    def test_a_folder_of_its_own(
        self, make: Make, texts: Path, bytes_folder: Path, tmp_path: Path
    ) -> None:
        settings = Settings(cleaning=RAW.cleaning, validation=0.3)
        prepare([texts], bytes_folder, tmp_path / "c", settings, workers=1)
        recipe = make(
            data__train=str(tmp_path / "c"),
            data__validation=str(tmp_path / "c" / "validation"),
            data__limit=20,
        )
        train, held = read_data(recipe)
        assert len(train) == 20
        assert held is not None
        assert len(held) == len(Corpus.open(tmp_path / "c" / "validation"))
        result = train_recipe(recipe, quiet=True)
        found = pretune.evaluate(recipe.output, tmp_path / "c" / "validation", device="cpu")
        assert found.metrics == pytest.approx(result.metrics)

    def test_too_few(self, make: Make, bytes_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text("the film", encoding="utf-8")
        prepare([tmp_path / "t.txt"], bytes_folder, tmp_path / "one", workers=1)
        with pytest.raises(DataError, match="1 documents are too few"):
            train_recipe(make(data__train=str(tmp_path / "one")), quiet=True)

    def test_texts_may_be_validated_on(self, make: Make, texts: Path) -> None:
        result = train_recipe(make(data__validation=str(texts)), quiet=True)
        assert result.details["characters"] > 60 * 10


def test_a_corpus_has_no_columns(make: Make) -> None:
    with pytest.raises(DataError, match="a prepared corpus has no columns but its text"):
        read_data(make().changed({"data.columns": {"text": "body"}}))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_other_tasks_need_records(make: Make, corpora: dict[str, Path]) -> None:
    recipe = Recipe.of({**make("mask_lm").to_dict(), "task": {"name": "classify"}})
    with pytest.raises(DataError, match="a prepared corpus is text alone; classify needs"):
        train_recipe(recipe, quiet=True)


def test_a_plan_counts_its_tokens(make: Make) -> None:
    found = plan_run(make(), measure=False)
    train, _ = read_data(make())
    assert found.tokens_per_epoch == train.lengths().sum() + len(train)  # type: ignore[union-attr]


def test_other_data_is_seen_when_resumed(make: Make, bytes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    prepare([write(tmp_path / "a.jsonl", 30)], bytes_folder, folder, RAW, workers=1)
    recipe = make(data__train=str(folder))
    with stopped_after(3):
        train_recipe(recipe, quiet=True)
    folder.rename(tmp_path / "old")
    prepare([write(tmp_path / "b.jsonl", 30, seed=1)], bytes_folder, folder, RAW, workers=1)
    with pytest.raises(RunError, match="other data"):
        resume(recipe.output, quiet=True)
