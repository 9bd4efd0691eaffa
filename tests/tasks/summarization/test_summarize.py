"""`summarize`: ROUGE beside rouge_score, and a small model that learns two summaries."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rouge_score import rouge_scorer

from pretune.bundle.bundle import load
from pretune.data.batch import Skipped
from pretune.data.records import Records
from pretune.inference.predict import Predictor
from pretune.recipe.recipe import Recipe
from pretune.tasks.summarization.rouge import longest_common, rouge, words
from pretune.tasks.summarization.summarize import Summarize, SummarizeOptions
from pretune.tokenizers.train import train_tokenizer
from pretune.training.run import train_recipe

ROWS = [
    {"document": "The dog ran over the meadow and it rained.", "summary": "A dog ran."},
    {"document": "Two men cooked dinner for all of us, as ever.", "summary": "Men cooked."},
]


def test_figures_are_those_of_rouge_score() -> None:
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    drawn = random.Random(0)
    vocabulary = ["The", "dog,", "dog-house", "isn't", "3", "men:", "COOK_ed", "x.y", "a", "a", "b"]
    texts = [" ".join(drawn.choices(vocabulary, k=drawn.randrange(15))) for _ in range(60)]
    for summary, reference in zip(texts, reversed(texts), strict=True):
        wanted = theirs.score(reference, summary)
        found = rouge(summary, reference)
        assert (found.rouge1, found.rouge2, found.rouge_l) == pytest.approx(
            [wanted[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
        )


def test_letters_of_all_languages_count_and_chinese_characters_one_by_one() -> None:
    assert words("Über 狗在跑, naïve!") == ["über", "狗", "在", "跑", "naïve"]
    assert rouge("狗跑", "狗在跑").rouge_l == pytest.approx(0.8)


def test_the_longest_common_subsequence_is_that_of_the_table() -> None:
    drawn = random.Random(1)
    for _ in range(50):
        one, two = (drawn.choices("abc", k=drawn.randrange(12)) for _ in range(2))
        table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(two):
                longer = max(table[i][j + 1], table[i + 1][j])
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else longer
        assert longest_common(one, two) == table[-1][-1]


def test_of_a_long_document_the_beginning_is_learned_from() -> None:
    tokenizer = train_tokenizer([row["document"] for row in ROWS], "bpe", 300)
    task = Summarize(SummarizeOptions(max_length=8, max_written=6, prefix="say: "))
    task._start, task._end = 1, tokenizer.end_id or 0
    task.bind(tokenizer)
    rows = [{"document": "dog " * 30, "summary": "dog"}, {"document": "x", "summary": "dog " * 9}]
    records = Records(rows, "a.jsonl", range(1, 3), ("document", "summary"))
    kept, skipped = task.features(records, range(2), tokenizer, with_targets=True)
    assert kept.truncated
    assert kept.choices[0] == 8
    assert tokenizer.decode(list(kept.tokens)[:8]).startswith("say: dog")
    assert isinstance(skipped, Skipped)
    assert "the target has over" in skipped.why


def test_a_small_model_learns_its_summaries(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    changes: dict[str, Any] = {
        "model.from": "t5-small",
        "model.config": {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 1,
            "num_decoder_layers": 1,
            "num_heads": 4,
        },
        "model.dropout": 0.0,
        "model.train_tokenizer": {"kind": "bpe", "vocab_size": 280},
        "data.train": str(data),
        "data.validation": str(data),
        "train.max_steps": 40,
        "train.warmup": 5,
        "train.learning_rate": 1e-2,
        "train.eval_every": 40,
        "output": str(tmp_path / "run"),
    }
    result = train_recipe(Recipe.load("summarize", changes), quiet=True)
    assert result.metrics["rouge_l"] > 99
    predictor = Predictor(load(tmp_path / "run"))
    found = predictor.predict(predictor.records([ROWS[0]["document"]]))
    assert found[0].summary == "A dog ran."
    shown = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert "rouge2" in shown["metrics"]


def test_a_prefix_may_end_in_a_colon_without_quotes() -> None:
    recipe = Recipe.load("summarize", ["task.prefix=say in brief: "])
    assert recipe.task.prefix == "say in brief: "
