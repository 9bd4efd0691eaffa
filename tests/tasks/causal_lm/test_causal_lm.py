"""The next token: blocks, figures against transformers, training from random weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

import pretune
from pretune.bundle.bundle import load, save
from pretune.data.batch import Feature
from pretune.data.records import Records
from pretune.errors import CheckpointError
from pretune.evaluation.examine import examine
from pretune.models.classics.rnn import RnnConfig, RnnModel
from pretune.recipe.recipe import Recipe
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions, LmPrediction
from pretune.tasks.features import featurize
from pretune.tasks.losses import IGNORED
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.training.data import read_data
from pretune.training.run import train_recipe
from pretune.training.validation import evaluate_features

LETTERS = "abc \n好😀<"


def letters(*, end: bool) -> Tokenizer:
    """A token a character; with an end of text, the last one."""
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)}
    engine = RustTokenizer(models.WordLevel(vocabulary, unk_token="a"))  # noqa: S106
    engine.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    engine.decoder = decoders.Fuse()
    return Tokenizer(engine, {"eos_token": "<"} if end else {})


def records(texts: list[str]) -> Records:
    return Records(rows=[{"text": text} for text in texts], origin="x", columns=("text",))


def features_of(task: CausalLm, texts: list[str], tokenizer: Tokenizer) -> list[Feature]:
    rows = range(len(texts))
    return list(task.features(records(texts), rows, tokenizer, with_targets=True))


TEXTS = st.lists(st.text(alphabet=LETTERS[:-1], min_size=1, max_size=30), min_size=1, max_size=5)


@given(texts=TEXTS, size=st.integers(3, 12), end=st.booleans())
def test_blocks_foretell_every_token_once(texts: list[str], size: int, end: bool) -> None:
    task = CausalLm(CausalLmOptions(max_length=size))
    actual = list(
        task.features(records(texts), range(len(texts)), letters(end=end), with_targets=True)
    )
    for row, text in enumerate(texts):
        own = [feature for feature in actual if feature.record == row]
        whole = [LETTERS.index(letter) for letter in (f"<{text}<" if end else text)]
        assert [t for f in own for t in f.tokens] == whole[:-1]
        assert [t for f in own for t in f.targets["next"]] == whole[1:]
        assert all(len(feature.tokens) <= size for feature in own)
        foretold = text if end else text[1:]
        assert sum(f.targets["chars"] for f in own) == len(foretold)
        assert sum(f.targets["bytes"] for f in own) == len(foretold.encode())


@given(texts=TEXTS, size=st.integers(3, 12))
def test_without_boundaries_texts_are_one_stream(texts: list[str], size: int) -> None:
    task = CausalLm(CausalLmOptions(max_length=size, boundaries=False))
    actual = list(
        task.features(records(texts), range(len(texts)), letters(end=True), with_targets=True)
    )
    stream = [LETTERS.index(letter) for letter in "".join(f"<{text}<" for text in texts)]
    assert [t for f in actual for t in f.tokens] == stream[:-1]
    assert [t for f in actual for t in f.targets["next"]] == stream[1:]
    assert all(len(feature.tokens) == size for feature in actual[:-1])
    assert sum(f.targets["chars"] for f in actual) == sum(map(len, texts))
    assert sum(f.targets["bytes"] for f in actual) == sum(len(text.encode()) for text in texts)


@given(texts=TEXTS, size=st.integers(3, 12), data=st.data(), boundaries=st.booleans())
def test_blocks_that_overlap_foretell_every_token_once(
    texts: list[str], size: int, data: st.DataObject, boundaries: bool
) -> None:
    step = data.draw(st.integers(1, size))
    options = CausalLmOptions(max_length=size, stride=step, boundaries=boundaries)
    rows, tokenizer = range(len(texts)), letters(end=True)
    actual = list(CausalLm(options).evaluation_features(records(texts), rows, tokenizer))
    streams = [f"<{text}<" for text in texts] if boundaries else ["".join(f"<{t}<" for t in texts)]
    for stream in streams:
        whole, seen = [LETTERS.index(letter) for letter in stream], 1
        for start in range(0, len(whole), step):
            feature = actual.pop(0)
            labels = list(feature.targets["next"])
            assert list(feature.tokens) == whole[start : start + size][: len(whole) - 1 - start]
            fresh = [label for label in labels if label != IGNORED]
            assert labels == [IGNORED] * (len(labels) - len(fresh)) + fresh
            assert fresh == whole[seen : seen + len(fresh)]
            own = "".join(LETTERS[token] for token in fresh).replace("<", "")
            assert (feature.targets["chars"], feature.targets["bytes"]) == (
                len(own),
                len(own.encode()),
            )
            seen += len(fresh)
            if seen == len(whole):
                break
            # From the second block on, what is foretold has at least this much before it.
            assert len(labels) == size
    assert not actual


def test_training_blocks_never_overlap() -> None:
    task = CausalLm(CausalLmOptions(max_length=4, stride=1))
    plain = CausalLm(CausalLmOptions(max_length=4))
    for one, other in zip(
        features_of(task, ["abcabcab"], letters(end=True)),
        features_of(plain, ["abcabcab"], letters(end=True)),
        strict=True,
    ):
        assert list(one.tokens) == list(other.tokens)
        assert list(one.targets["next"]) == list(other.targets["next"])


def test_a_stride_that_leaves_tokens_out_is_refused() -> None:
    with pytest.raises(ValueError, match="a stride of 9 is more than max_length, 8"):
        CausalLmOptions(max_length=8, stride=9)


def test_a_model_with_a_state_needs_no_stride() -> None:
    task = CausalLm(CausalLmOptions(max_length=8, stride=4))
    with pytest.raises(CheckpointError, match=r"task\.stride: a rnn carries its state"):
        task.build(RnnModel(RnnConfig(vocab_size=len(LETTERS), hidden_size=8)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random GPT-2 as transformers saves it, over the letters."""
    place = tmp_path_factory.mktemp("gpt2")
    config = transformers.GPT2Config(
        vocab_size=len(LETTERS), n_positions=16, n_embd=32, n_layer=2, n_head=4
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(place)
    letters(end=True).save(place)
    return place


def test_figures_are_those_of_transformers(folder: Path) -> None:
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    bundle = load(folder)
    assert isinstance(bundle.task, CausalLm)
    texts = ["abc好 ab", "cab\n😀 b" * 4]
    task = CausalLm(CausalLmOptions(max_length=16))
    features = featurize(task, records(texts), bundle.tokenizer)
    actual = evaluate_features(task, bundle.model, features)
    nats, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([LETTERS.index(letter) for letter in f"<{text}<"])
        for start in range(0, len(ids) - 1, 16):
            block, after = ids[start : start + 17][:-1], ids[start + 1 : start + 17]
            with torch.no_grad():
                logits = theirs(block[None]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, after, reduction="sum"))
            count += len(after)
    assert actual.metrics["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert actual.metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    characters, size = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    assert actual.metrics["bits_per_character"] == pytest.approx(nats / math.log(2) / characters)
    assert actual.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert actual.details == {"tokens": count, "characters": characters, "bytes": size}


@pytest.mark.parametrize("boundaries", [True, False])
def test_a_long_text_gets_one_answer(folder: Path, boundaries: bool) -> None:
    """Of all its blocks; each text by itself, whatever was trained on."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    bundle = load(folder, task=CausalLm(CausalLmOptions(max_length=16, boundaries=boundaries)))
    texts = ["cab\n😀 b" * 6, "", "abc"]
    actual = pretune.predict(bundle, texts)
    assert len(actual) == 3
    for text, answer in zip(texts, actual, strict=True):
        assert isinstance(answer, LmPrediction)
        ids = torch.tensor([LETTERS.index(letter) for letter in f"<{text}<"])
        nats = 0.0
        for start in range(0, len(ids) - 1, 16):
            block, after = ids[start : start + 17][:-1], ids[start + 1 : start + 17]
            with torch.no_grad():
                logits = theirs(block[None]).logits[0]
            nats += float(torch.nn.functional.cross_entropy(logits, after, reduction="sum"))
        assert answer.tokens == len(ids) - 1
        assert answer.log_probability == pytest.approx(-nats, rel=1e-5)
        assert answer.perplexity == pytest.approx(math.exp(nats / answer.tokens), rel=1e-5)


def test_where_nothing_is_foretold_there_is_no_perplexity(folder: Path, tmp_path: Path) -> None:
    """A perplexity of 1 would be the best there is."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    letters(end=False).save(tmp_path)
    task = CausalLm(CausalLmOptions(max_length=16))
    one, two = pretune.predict(load(tmp_path, task=task), ["a", "ab"])
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False)) == {
        "tokens": 0,
        "log_probability": 0.0,
        "perplexity": None,
    }
    assert isinstance(two, LmPrediction)
    assert two.perplexity == pytest.approx(math.exp(-two.log_probability))


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_a_stride_gives_tokens_more_before_them(folder: Path, stride: int) -> None:
    """Each token is predicted from the longest context that any block gives it."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    texts = ["cab\n😀 b" * 6, "", "abc", "b" * 15, "c" * 16]
    expected = []
    for text in texts:
        ids = [LETTERS.index(letter) for letter in f"<{text}<"]
        nats = 0.0
        for place in range(1, len(ids)):
            # The first block that reaches the token: a multiple of the stride, at most 16 before.
            start = -(-max(place - 16, 0) // stride) * stride
            with torch.no_grad():
                logits = theirs(torch.tensor([ids[start:place]])).logits[0, -1]
            nats -= float(logits.log_softmax(-1)[ids[place]])
        expected.append((nats, len(ids) - 1))
    measured = [own for own, text in zip(expected, texts, strict=True) if text]
    total, count = (sum(part) for part in zip(*measured, strict=True))
    options = {"stride": stride, "max_length": 16}
    bundle = load(folder, task=CausalLm(CausalLmOptions(**options)))
    for (nats, tokens), answer in zip(expected, pretune.predict(bundle, texts), strict=True):
        assert isinstance(answer, LmPrediction)
        assert answer.tokens == tokens
        assert answer.log_probability == pytest.approx(-nats, rel=1e-5)
    task = bundle.task
    assert isinstance(task, CausalLm)
    features = featurize(task, records(texts), bundle.tokenizer, evaluation=True)
    actual = evaluate_features(task, bundle.model, features)
    assert actual.metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    size = sum(len(text.encode()) for text in texts)
    assert actual.metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)
    assert actual.details["tokens"] == count
    examined = examine(bundle, records(texts))
    assert sum(example.loss for example in examined.examples) == pytest.approx(total, rel=1e-5)
    assert sum(example.terms for example in examined.examples) == count


def test_goes_back_to_transformers(folder: Path, tmp_path: Path) -> None:
    save(load(folder), tmp_path)
    ids = torch.tensor([[0, 1, 2, 5]])
    one, two = (
        transformers.GPT2LMHeadModel.from_pretrained(place).eval()(ids).logits
        for place in (folder, tmp_path)
    )
    assert torch.equal(one, two)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A small GPT-2 of random weights on one text whose next letter is always clear."""
    letters(end=False).save(tmp_path)
    (tmp_path / "text.txt").write_text("abc " * 400, encoding="utf-8")
    return Recipe.of(
        {
            "task": {"name": "causal_lm", "max_length": 16},
            "model": {
                "from": "gpt2-small",
                "tokenizer": str(tmp_path),
                "config": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16},
            },
            "data": {"train": str(tmp_path / "text.txt"), "validation": 0.1},
            "train": {"max_steps": 60, "learning_rate": 1e-2, "device": "cpu"},
            "output": str(tmp_path / "run"),
        }
    )


def test_learns_from_random_weights(recipe: Recipe) -> None:
    result = train_recipe(recipe, quiet=True)
    assert result.metrics["bits_per_character"] < 0.2  # 2 by the letters' frequencies
    assert load(recipe.output).backbone.config.size("vocab_size") == len(LETTERS)


def test_the_end_of_a_single_text_is_held_back(recipe: Recipe) -> None:
    train, held_out = read_data(recipe)
    assert held_out is not None
    assert train.text(0, "text") + held_out.text(0, "text") == "abc " * 400
    assert len(held_out.text(0, "text")) == 160


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_any_share_of_a_single_text_can_be_held_back(recipe: Recipe, share: float) -> None:
    train, held_out = read_data(recipe.changed({"data.validation": share}))
    assert isinstance(train, Records)
    assert isinstance(held_out, Records)
    assert train.text(0, "text") + held_out.text(0, "text") == "abc " * 400
    assert len(held_out.text(0, "text")) == pytest.approx(1600 * share, abs=1)


@pytest.mark.parametrize(("books", "whole"), [(2, False), (5, False), (6, True)])
def test_of_many_books_whole_ones_are_held_back(
    recipe: Recipe, tmp_path: Path, books: int, whole: bool
) -> None:
    (tmp_path / "books").mkdir()
    for number in range(books):
        (tmp_path / "books" / f"{number}.txt").write_text("abc " * 400, encoding="utf-8")
    train, held_out = read_data(recipe.changed({"data.train": str(tmp_path / "books")}))
    assert isinstance(held_out, Records)
    assert (len(train), len(held_out)) == ((books - 1, 1) if whole else (books, books))
    assert len(held_out.text(0, "text")) == (1600 if whole else 160)


def test_accumulation_is_exact(recipe: Recipe, tmp_path: Path) -> None:
    steady = recipe.changed(
        {
            "train.max_steps": 4,
            "train.eps": 0.1,
            "train.clip": None,
            "train.batch_size": 7,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
        }
    )
    train_recipe(steady, quiet=True)
    split = steady.changed({"train.accumulate": 3, "output": str(tmp_path / "split")})
    train_recipe(split, quiet=True)
    one, two = (load(Path(r.output) / "last").model.state_dict() for r in (steady, split))
    for name, expected in one.items():
        assert np.allclose(two[name], expected, atol=2e-6), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.config": {"n_layers": 2}}, "did you mean 'n_layer'"),
        ({"model.config": {"n_layer": -2}}, "n_layer"),
        ({"model.tokenizer": None}, "need a tokenizer"),
        ({"task.max_length": 64}, "max_length"),
    ],
)
def test_sizes_that_make_no_sense(recipe: Recipe, change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        train_recipe(recipe.changed(change), quiet=True)
    assert message.lower() in str(caught.value).lower()


def test_loaded_weights_have_the_size_they_have(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="the weights of a checkpoint fix its sizes"):
        load(folder, config={"n_layer": 3})
