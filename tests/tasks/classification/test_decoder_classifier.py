"""GPT-2 as a classifier: from a language model to labels, and into transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pretune.bundle.bundle import load
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError
from pretune.inference.predict import Predictor
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from pretune.tokenizers.train import train_tokenizer
from pretune.training.run import train_recipe

TEXTS = ["the film is good", "bad", "what a very good film that was"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films that are good or bad; as single texts and as pairs that agree or not."""
    chance = random.Random(3)
    folder = tmp_path_factory.mktemp("decoder")
    single, pairs = ["text\tlabel"], ["sentence1\tsentence2\tlabel"]
    for _ in range(48):
        one, two = (chance.choice(["good", "bad"]) for _ in range(2))
        single.append(f"{'the film is ' * chance.randint(0, 2)}{one}\t{one}")
        pairs.append(f"{'the film is ' * chance.randint(0, 1)}{one}\t{two}\t{one == two}")
    for name, lines in (("single.tsv", single), ("pairs.tsv", pairs)):
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "text.txt").write_text("\n".join(line.split("\t")[0] for line in single[1:]))
    return folder


@pytest.fixture(scope="module")
def language_model(data: Path) -> str:
    """A run that has learned the texts."""
    tokenizer = data / "tokenizer"
    tokenizer.mkdir()
    train_tokenizer([(data / "text.txt").read_text()] * 2, "bpe", 270).save(tokenizer)
    recipe = Recipe.of(
        {
            "task": {"name": "causal_lm", "max_length": 24},
            "model": {
                "from": "gpt2-small",
                "tokenizer": str(tokenizer),
                "config": {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32},
                "dropout": 0.0,
                "attention_dropout": 0.0,
            },
            "data": {"train": str(data / "text.txt")},
            "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"},
            "output": str(data / "lm"),
        }
    )
    train_recipe(recipe, quiet=True)
    return recipe.output


def classifier(language_model: str, data: Path, output: Path, **task: Any) -> Recipe:
    name = "pairs.tsv" if task.get("pair") else "single.tsv"
    return Recipe.of(
        {
            "task": {"name": "classify", "max_length": 32, **task},
            "model": {"from": language_model},
            "data": {"train": str(data / name)},
            "train": {"epochs": 8, "batch_size": 8, "learning_rate": 1e-2, "device": "cpu"},
            "output": str(output),
        }
    )


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_a_language_model_learns_labels(
    freeze: str, language_model: str, data: Path, tmp_path: Path
) -> None:
    recipe = classifier(language_model, data, tmp_path / "run").changed({"train.freeze": freeze})
    result = train_recipe(recipe, quiet=True)
    if freeze == "none":
        assert result.metrics["accuracy"] == 1.0
    before = load(language_model).backbone.state_dict()
    after = load(recipe.output).backbone.state_dict()
    same = all(torch.equal(after[name], value) for name, value in before.items())
    assert same == (freeze == "backbone")


@pytest.mark.parametrize("pair", [False, True])
def test_transformers_gives_the_same_logits(
    pair: bool, language_model: str, data: Path, tmp_path: Path
) -> None:
    """With its own padded batches, and its own joining of pairs."""
    recipe = classifier(language_model, data, tmp_path / "run", pair=pair)
    train_recipe(recipe.changed({"train.max_steps": 2}), quiet=True)
    folder = Path(recipe.output) / "last"
    theirs = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bundle = load(folder)
    assert type(theirs).__name__ == "GPT2ForSequenceClassification"
    assert theirs.config.pad_token_id == bundle.tokenizer.special_id("eos_token")
    seconds = TEXTS[::-1] if pair else None
    padded = tokenizer(TEXTS, seconds, padding=True, return_tensors="pt")
    assert len(set(padded["attention_mask"].sum(1).tolist())) > 1, "there is padding"
    batch = PackedBatch.of([one.ids for one in bundle.tokenizer.encode(TEXTS, seconds)])
    with torch.no_grad():
        expected = theirs(**padded).logits
        found = bundle.model.eval()(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_pair_has_the_end_of_text_between(language_model: str) -> None:
    """Else "a b" + "c" would be "a" + "b c"."""
    bundle = load(language_model, task=Classify(ClassifyOptions(pair=True, max_length=32), "ab"))
    one, two = bundle.tokenizer.encode(["good film", "good"], ["bad", "film bad"])
    end = bundle.tokenizer.special_id("eos_token")
    assert end is not None
    assert one.ids.count(end) == two.ids.count(end) == 1
    assert one.ids.index(end) != two.ids.index(end)
    assert bundle.tokenizer.encode(["good"])[0].ids.count(end) == 0


def test_a_pair_without_anything_to_put_between_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_tokenizer(["abc abc"] * 3, "char").save(folder)
    with pytest.raises(CheckpointError, match="no special token"):
        load(
            "gpt2-small",
            task=Classify(ClassifyOptions(pair=True, max_length=16), "ab"),
            tokenizer=folder,
            config={"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": 16},
        )


def test_an_empty_text_is_skipped_and_answered(language_model: str) -> None:
    task = Classify(ClassifyOptions(max_length=32), "ab")
    bundle = load(language_model, task=task)
    rows = [{"text": "good", "label": "a"}, {"text": "", "label": "b"}]
    given = Records(rows, "t.tsv", [2, 3], ("text", "label"))
    assert [item.record for item in featurize(task, given, bundle.tokenizer).skipped] == [1]
    answers = Predictor(bundle, device="cpu").predict(given)
    assert len(answers) == 2


def test_predicts(language_model: str, data: Path, tmp_path: Path) -> None:
    recipe = classifier(language_model, data, tmp_path / "run")
    train_recipe(recipe, quiet=True)
    predictor = Predictor(load(recipe.output), device="cpu")
    answers = predictor.predict(predictor.records(["the film is bad", "the film is good"]))
    assert [answer.to_dict()["label"] for answer in answers] == ["bad", "good"]
