"""Token embeddings from neighbours: against slow loops, an exact decomposition, and in runs."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pretune.bundle.bundle import load
from pretune.cli.app import app
from pretune.corpus.pipeline import Settings, prepare
from pretune.data.arrays import Array
from pretune.data.batch import Feature, FeatureSet
from pretune.recipe.recipe import Recipe
from pretune.training import warm_embeddings as warm
from pretune.training.run import resume, train_recipe
from pretune.training.warm_embeddings import WINDOW, factorized, neighbours, ppmi, sampled
from tests.training.groups import STEADY, Together, assert_close, weights
from tests.training.outcomes import stopped_after

Make = Callable[..., Recipe]
SPECIAL = (0, 1)


def drawn(count: int = 60, vocab_size: int = 12) -> list[list[int]]:
    chance = random.Random(3)
    return [
        [0, *(min(int(chance.expovariate(0.3)) + 2, vocab_size - 2) for _ in range(length)), 1]
        for length in (chance.randint(1, 14) for _ in range(count))
    ]


def packed(sequences: list[list[int]], together: int = 7) -> list[tuple[Array, Array]]:
    groups = [sequences[i : i + together] for i in range(0, len(sequences), together)]
    return [
        (
            np.array([token for one in group for token in one]),
            np.array([number for number, one in enumerate(group) for _ in one]),
        )
        for group in groups
    ]


def slow_counts(sequences: list[list[int]]) -> Counter[tuple[int, int]]:
    """By hand: each pair of places of a sequence."""
    counts = Counter[tuple[int, int]]()
    for one in sequences:
        for i, token in enumerate(one):
            for j, other in enumerate(one):
                near = 0 < abs(i - j) <= WINDOW
                if near and token not in SPECIAL and other not in SPECIAL:
                    counts[token, other] += (WINDOW + 1 - abs(i - j)) / WINDOW
    return counts


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("together", [20, 2_000_000])
def test_neighbours_are_those_of_a_slow_loop(
    together: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_TOGETHER", together)
    sequences = drawn()
    found = neighbours(iter(packed(sequences, batch)), 12, SPECIAL)
    # All 12 are contexts, the most frequent first, special ones and those without a count last.
    frequency = Counter(token for one in sequences for token in one if token not in SPECIAL)
    order = sorted(range(12), key=lambda token: (-frequency[token], token))
    expected = slow_counts(sequences)
    for token in range(12):
        for column, other in enumerate(order):
            assert found.counts[token, column] == pytest.approx(expected[token, other], abs=1e-3)
    assert found.tokens == frequency.total()
    assert found.counts[11].sum() == 0  # never drawn


def test_a_large_vocabulary_has_the_most_frequent_contexts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = neighbours(iter(packed(drawn())), 12, SPECIAL)
    monkeypatch.setattr(warm, "CELLS", 12 * 4 + 5)
    few = neighbours(iter(packed(drawn())), 12, SPECIAL)
    assert few.counts.shape == (12, 4)
    np.testing.assert_array_equal(few.counts, whole.counts[:, :4])


def test_ppmi_is_its_definition() -> None:
    counts = neighbours(iter(packed(drawn())), 12, SPECIAL).counts
    total, smoothed = float(counts.sum()), (counts.sum(0).astype(float) ** 0.75)
    found = ppmi(counts.copy())
    for token in range(12):
        for column in range(12):
            together = counts[token, column] / total
            if not together:
                assert found[token, column] == 0
                continue
            alone = counts[token].sum() / total * smoothed[column] / smoothed.sum()
            expected = max(0.0, math.log(together / alone))
            assert found[token, column] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("height", "width", "size"), [(60, 60, 8), (60, 20, 8), (60, 5, 8)])
def test_factors_are_those_of_an_exact_decomposition(height: int, width: int, size: int) -> None:
    # Singular values that fall, as those of words do.
    random_ = np.random.default_rng(0)
    rank = min(height, width)
    left = np.linalg.qr(random_.standard_normal((height, rank)))[0]
    right = np.linalg.qr(random_.standard_normal((width, rank)))[0]
    table = ((left * 50 * 0.7 ** np.arange(rank)) @ right.T).astype(np.float32)
    table[7] = 0
    vectors = factorized(table, size)
    u, s, _ = np.linalg.svd(table, full_matrices=False)
    expected = (u[:, :size] * s[:size]) @ u[:, :size].T
    # The signs of singular vectors are free, their products are not.
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=2e-3)
    assert not vectors[7].any()
    assert vectors.shape == (height, size)


def test_too_many_tokens_are_read_at_even_distances() -> None:
    features = FeatureSet.of(Feature([5 + i, 6, 7], [0] * 3, {}, i) for i in range(30))
    read = [int(token) for tokens, _ in sampled(features, most=30) for token in tokens[::3]]
    assert read == [5 + i for i in range(0, 30, 3)]
    every = [tokens for tokens, _ in sampled(features)]
    assert sum(map(len, every)) == 90


# In runs


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sentences in which `good` and `bad` stand in like places, and `the` elsewhere."""
    lines = [
        f"the {first} film {word} {second} {last} !"
        for first in "abcde"
        for word in ("good", "bad")
        for second in "klmn"
        for last in "opqrstuv"
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": x}) + "\n" for x in lines), encoding="utf-8")
    return path


@pytest.fixture
def make(tiny_folder: Path, texts: Path, tmp_path: Path) -> Make:
    def make(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "task": {"name": "mask_lm", "max_length": 16},
            "data": {"train": str(texts), "validation": None},
            "model": {
                "from": "bert-tiny",
                "tokenizer": str(tiny_folder),
                "config": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16},
                "embeddings": "neighbours",
            },
            "train": {"max_steps": 0, "device": "cpu", "batch_size": 16},
            "output": str(tmp_path / "run"),
        }
        return Recipe.of(values).changed({key.replace("__", "."): v for key, v in changes.items()})

    return make


def embeddings(folder: str | Path) -> tuple[Any, Any]:
    bundle = load(Path(folder) / "last", mmap=False)
    return bundle.tokenizer, bundle.backbone.embeddings.tokens.weight.detach()


def test_words_of_like_places_begin_alike(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    train_recipe(make())
    tokenizer, table = embeddings(make().output)
    known = tokenizer.engine.get_vocab()
    good, bad, the = (table[known[word]] for word in ("good", "bad", "the"))
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(good, bad, dim=0) > 0.9
    assert cosine(good, the, dim=0) < 0.7
    # Seen ones and others have the same scale, and special ones are still random.
    seen = [known[word] for word in ("the", "film", "good", "bad", "!", *"abcdeklmnopqrstuv")]
    rest = [i for i in range(len(table)) if i not in seen]
    for rows in (seen, rest):
        assert float(table[rows].square().mean().sqrt()) == pytest.approx(warm.SCALE, rel=0.01)
    assert f"for {len(seen)} of {len(table)} entries of the vocabulary" in capsys.readouterr().err


def test_a_prepared_corpus_gives_the_same(
    make: Make, texts: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = Settings(keep_duplicates=True)
    prepare([texts], tiny_folder, tmp_path / "corpus", settings, workers=1)
    train_recipe(make(), quiet=True)
    stored = make(data__train=str(tmp_path / "corpus"), output=str(tmp_path / "stored"))
    train_recipe(stored, quiet=True)
    torch.testing.assert_close(embeddings(stored.output)[1], embeddings(make().output)[1])


def test_a_language_model_begins_so_too(make: Make) -> None:
    recipe = make(
        model__from="gpt2-small",
        model__config={"n_embd": 16, "n_layer": 1, "n_head": 2},
        task={"name": "causal_lm", "max_length": 16},
    )
    train_recipe(recipe, quiet=True)
    tokenizer, table = embeddings(recipe.output)
    known = tokenizer.engine.get_vocab()
    like = torch.nn.functional.cosine_similarity(table[known["good"]], table[known["bad"]], dim=0)
    assert like > 0.9


def test_a_run_goes_on_with_what_it_learned(make: Make, tmp_path: Path) -> None:
    whole = make(train__max_steps=6, train__save_every=2)
    train_recipe(whole, quiet=True)
    half = whole.changed({"output": str(tmp_path / "half")})
    with stopped_after(3):
        train_recipe(half, quiet=True)
    resume(half.output, quiet=True)
    for name, value in weights(whole.output).items():
        assert torch.equal(value, weights(half.output)[name]), name


def test_several_processes_begin_alike(make: Make, tmp_path: Path, together: Together) -> None:
    one = make(**STEADY, train__max_steps=2, model__dropout=0, model__attention_dropout=0)
    train_recipe(one, quiet=True)
    several = one.changed({"output": str(tmp_path / "several"), "train.parallel": "ddp"})
    together.train(2, several)
    assert_close(several.output, weights(one.output))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.from": "{tiny}", "model.config": {}}, "were trained already"),
        ({"model.config": {"hidden_size": 500, "num_attention_heads": 2}}, "500 dimensions for"),
    ],
)
def test_where_it_cannot_be(
    changes: dict[str, Any], message: str, make: Make, tiny_folder: Path, tmp_path: Path
) -> None:
    values = {
        k: v.format(tiny=tiny_folder) if isinstance(v, str) else v for k, v in changes.items()
    }
    recipe = make().changed(values)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    done = CliRunner().invoke(app, ["train", str(path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not Path(recipe.output).exists()


def test_recipes_without_it_do_not_name_it() -> None:
    assert "embeddings" not in Recipe.load("bert-pretrain").to_dict()["model"]
