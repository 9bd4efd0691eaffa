"""`reward` against transformers, its figures against closed forms, and as a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import pretune
from pretune.bundle.bundle import load, save
from pretune.data.batch import PackedBatch
from pretune.errors import DataError
from pretune.inference.predict import Predictor
from pretune.tasks.alignment.reward import (
    MARGIN,
    REPLY_TOKENS,
    Reward,
    RewardMetrics,
    RewardOptions,
)
from pretune.tasks.features import record_features
from pretune.training.run import train_recipe
from tests.tasks.alignment.preferences import ROWS, recipe, records, saved, write


def batch(scores: list[list[float]], **targets: Any) -> tuple[torch.Tensor, PackedBatch]:
    """Scores of pairs, as a model gives them, and their batch."""
    made = PackedBatch.of([[0]] * (2 * len(scores)))
    lengths = torch.tensor(targets.pop("lengths", [[1, 1]] * len(scores)))
    values = {REPLY_TOKENS: lengths, **{k: torch.tensor(v) for k, v in targets.items()}}
    whole = PackedBatch(made.tokens, made.layout, made.positions, targets=values)
    return torch.tensor(scores).reshape(-1, 1), whole


def test_the_loss_is_its_formula() -> None:
    task = Reward(RewardOptions(center=0.2))
    outputs, own = batch([[2.0, 0.5], [-1.0, 1.0]], **{MARGIN: [0.25, 0.0]})
    expected = [
        math.log1p(math.exp(-(1.5 - 0.25))) + 0.2 * 2.5**2,
        math.log1p(math.exp(2.0)),
    ]
    loss = task.loss(outputs, own)
    assert float(loss.sum) == pytest.approx(sum(expected))
    assert loss.count == 2
    assert task.each_loss(outputs, own).sums.tolist() == pytest.approx(expected)


def test_starts_at_ln_2() -> None:
    outputs, own = batch([[0.3, 0.3]])
    assert float(Reward(RewardOptions()).loss(outputs, own).sum) == pytest.approx(math.log(2))


def test_figures_by_hand() -> None:
    metrics = RewardMetrics()
    lengths = [[5, 4], [10, 20], [9, 9], [30, 10]]
    metrics.update(*batch([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 0.0]], lengths=lengths))
    result = metrics.result()
    assert result["accuracy"] == pytest.approx(2.5 / 4)
    assert result["margin"] == pytest.approx((1 - 2 + 0 + 3) / 4)
    assert result["longer_accuracy"] == pytest.approx(2.5 / 4)
    # Confidences .73 (right), .88 (wrong), .5 (half), .95 (right) lie in bins of their own.
    sure = [1 / (1 + math.exp(-x)) for x in (1, 2, 0, 3)]
    gaps = [1 - sure[0], sure[1], 0.0, 1 - sure[3]]
    assert result["calibration_error"] == pytest.approx(sum(gaps) / 4)
    table = metrics.details()["by_length"]
    assert [row["pairs"] for row in table] == [1, 1, 2]
    assert [row["accuracy"] for row in table] == [0.5, 1.0, 0.5]
    assert [row["longer_accuracy"] for row in table] == [0.5, 1.0, 0.5]
    # Split over two processes it is the same.
    parts = [RewardMetrics(), RewardMetrics()]
    parts[0].update(*batch([[1.0, 0.0]], lengths=lengths[:1]))
    parts[1].update(*batch([[0.0, 2.0], [1.0, 1.0], [3.0, 0.0]], lengths=lengths[1:]))
    parts[1].merge(parts[0])
    assert parts[1].result() == result


def test_a_decoders_scores_are_those_of_transformers(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    train_recipe(recipe("reward", tmp_path), quiet=True)
    folder = tmp_path / "run/best"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.config.num_labels == 1
    asked = [(row["prompt"], row["chosen"]) for row in ROWS]
    ours = pretune.predict(tmp_path / "run", asked, device="cpu")
    rows = []
    for prompt, reply in asked:
        talk = [{"role": "user", "content": prompt}]
        begin = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        talk.append({"role": "assistant", "content": reply})
        whole = tokenizer.apply_chat_template(talk, tokenize=False)
        # A reply is tokenized by itself, as in generation.
        rows.append(tokenizer(begin).input_ids + tokenizer(whole[len(begin) :]).input_ids)
    assert {row[-1] for row in rows} == {tokenizer.eos_token_id} != {tokenizer.pad_token_id}
    # Padded and in one batch there, packed here: the last token is found by both.
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**padded).logits[:, 0].tolist()
    assert [answer.score for answer in ours] == pytest.approx(expected, abs=1e-5)


def test_an_encoder_reads_a_pair(tiny_folder: Path, tmp_path: Path) -> None:
    task = Reward(RewardOptions(max_length=32))
    bundle = load(tiny_folder, task=task)
    folder = tmp_path / "saved"
    folder.mkdir()
    save(bundle, folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    (ours,) = Predictor(load(folder), device="cpu").predict(
        Predictor(load(folder), device="cpu").records([("the film?", "good good film")])
    )
    with torch.no_grad():
        inputs = tokenizer("the film?", "good good film", return_tensors="pt")
        expected = float(theirs(**inputs).logits[0, 0])
    assert ours.to_dict()["score"] == pytest.approx(expected, abs=1e-5)
    # Of a long prompt the end stays, of a long reply the beginning.
    long = [{"prompt": "bad " * 60 + "film?", "chosen": "good " * 60, "rejected": "bad"}]
    made = record_features(task, records(task, long), bundle.tokenizer)
    first = made.batch(np.array([0]))
    text = bundle.tokenizer.decode(first.tokens[: first.layout.lengths[0]].tolist())
    assert max(first.layout.lengths) <= 32
    assert "film" in text
    assert made.truncated == 1


def test_a_run_learns_and_normalises(tmp_path: Path) -> None:
    saved(tmp_path / "sft")
    changes = {"train.epochs": 15, "train.learning_rate": 3e-3, "task.normalize": True}
    changes["data.validation"] = str(write(tmp_path / "all.jsonl"))
    result = train_recipe(recipe("reward", tmp_path, **changes), quiet=True)
    assert result.metrics["accuracy"] == 1.0
    asked = [(row["prompt"], row[name]) for row in ROWS for name in ("chosen", "rejected")]
    scores = np.array([a.score for a in pretune.predict(tmp_path / "run", asked, device="cpu")])
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert scores.std() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", ["much", True, math.inf, 1e300, math.nan])
def test_a_margin_is_a_number(value: Any) -> None:
    task = Reward(RewardOptions())
    rows = [{**ROWS[0], "margin": value}]
    bundle = load("gpt2-small", task=task, tokenizer=_tokenizer(), config={"n_layer": 1})
    if value != value:  # NaN, as pandas writes nothing
        made = record_features(task, records(task, rows), bundle.tokenizer)
        assert made.targets[MARGIN].tolist() == [0.0]
        return
    with pytest.raises(DataError, match="line 1, column 'margin': expected a number from -1000"):
        record_features(task, records(task, rows), bundle.tokenizer)


def _tokenizer() -> Any:
    from tests.tasks.alignment.preferences import answering

    return answering().tokenizer
