from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pretune.bundle.bundle import load, save
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError
from pretune.tasks.classification.classify import Classify
from pretune.tasks.features import featurize
from pretune.tasks.regression.regress import (
    Regress,
    RegressionMetrics,
    RegressOptions,
    ScorePrediction,
)
from pretune.tokenizers.load import load_tokenizer


def scored(*scores: Any) -> Records:
    rows = [{"text": f"text {i}", "score": score} for i, score in enumerate(scores)]
    return Records(rows, "train.tsv", list(range(2, len(rows) + 2)), ("text", "score"))


def seen(guess: list[float], truth: list[float]) -> RegressionMetrics:
    metrics = RegressionMetrics()
    for start in range(0, len(guess), 3):
        part = slice(start, start + 3)
        batch = PackedBatch.of([[1]] * len(guess[part]), targets={"score": truth[part]})
        metrics.update(torch.tensor(guess[part], dtype=torch.float64)[:, None], batch)
    return metrics


def sums_figures(guess: list[float], truth: list[float]) -> dict[str, float]:
    """As a report has them: from what is added up over examples, behind the loss and its count."""
    task = Regress(RegressOptions())
    grade = task.grader(scored(*truth))
    counts = [grade(ScorePrediction(one), row).counts for row, one in enumerate(guess)]
    sums = np.sum([(0.0, 1.0, *each) for each in counts], 0)
    return {name: float(value) for name, value in task.figures(sums).items()}


NUMBERS = st.integers(-6, 6).map(lambda n: n / 2)  # ties, too
FEW = st.integers(-40, 40).map(lambda n: n / 10)  # not exact in binary
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=25)


class TestMetrics:
    @given(PAIRS)
    def test_agree_with_scipy(self, pairs: list[tuple[float, float]]) -> None:
        guess, truth = (list(column) for column in zip(*pairs, strict=True))
        found = seen(guess, truth).result()
        difference = np.subtract(guess, truth)
        assert found["mse"] == pytest.approx(np.mean(difference**2))
        assert found["mae"] == pytest.approx(np.mean(abs(difference)))
        if len(set(guess)) == 1 or len(set(truth)) == 1:
            assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
            return
        assert found["pearson"] == pytest.approx(stats.pearsonr(guess, truth)[0], abs=1e-9)
        assert found["spearman"] == pytest.approx(stats.spearmanr(guess, truth)[0], abs=1e-9)

    @given(PAIRS, st.randoms(use_true_random=False))
    def test_do_not_depend_on_who_saw_what(self, pairs: list[Any], chance: Any) -> None:
        guess, truth = (list(column) for column in zip(*pairs, strict=True))
        mixed = chance.sample(pairs, len(pairs))
        cut = chance.randint(1, len(pairs) - 1)
        one, two = (
            seen(*(list(column) for column in zip(*part, strict=True)))
            for part in (mixed[:cut], mixed[cut:])
        )
        two.merge(one)
        assert two.result() == seen(guess, truth).result()  # exactly

    @pytest.mark.parametrize("count", [3, 7, 10])
    @pytest.mark.parametrize(("one", "other"), [(0.1, 0.1), (0.1, 0.7), (-999.9, 1e-4)])
    def test_what_does_not_vary_is_like_nothing(self, one: float, other: float, count: int) -> None:
        same, varied = [one] * count, [other * i for i in range(count)]
        for guess, truth in ((same, [other] * count), (same, varied), (varied, same)):
            assert seen(guess, truth).result()["pearson"] == 0.0
            assert sums_figures(guess, truth)["pearson"] == 0.0

    @given(st.lists(st.tuples(FEW, FEW), min_size=2, max_size=25), st.sampled_from([0, 3.5, 700]))
    def test_figures_of_sums_agree_with_scipy(
        self, pairs: list[tuple[float, float]], away: float
    ) -> None:
        guess, truth = ([away + x for x in column] for column in zip(*pairs, strict=True))
        varies = len(set(guess)) > 1 and len(set(truth)) > 1
        expected = stats.pearsonr(guess, truth)[0] if varies else 0.0
        assert sums_figures(guess, truth)["pearson"] == pytest.approx(expected, abs=1e-5)
        assert seen(guess, truth).result()["pearson"] == pytest.approx(expected, abs=1e-9)

    def test_of_answers_that_are_no_numbers_are_zeros(self) -> None:
        found = seen([math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]).result()
        assert found["pearson"] == 0.0

    def test_of_nothing_are_zeros(self) -> None:
        assert set(RegressionMetrics().result().values()) == {0.0}


class TestScores:
    @pytest.mark.parametrize(
        "wrong", ["good", "", None, "nan", float("nan"), "inf", True, [1], "1_0"]
    )
    def test_that_are_none_name_the_place(self, wrong: Any) -> None:
        with pytest.raises(DataError, match=r"train\.tsv, line 3, column 'score': expected a numb"):
            Regress(RegressOptions()).fit(scored("1", wrong))

    def test_all_alike_are_refused(self) -> None:
        with pytest.raises(DataError, match="every score is 2"):
            Regress(RegressOptions()).fit(scored(2, 2.0, "2"))

    def test_out_of_reach_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"line 3.*-54000"):
            Regress(RegressOptions()).fit(scored(1, -54000))

    def test_are_numbers_or_their_text(self, tiny_vocab_folder: Path) -> None:
        found = featurize(
            Regress(RegressOptions()), scored("2.5", 3, " 4e-1 "), load_tokenizer(tiny_vocab_folder)
        )
        assert found.targets["score"].tolist() == pytest.approx([2.5, 3.0, 0.4])
        assert found.targets["score"].dtype == np.float32


def test_the_loss_is_the_sum_of_squares() -> None:
    batch = PackedBatch.of([[1], [2]], targets={"score": [1.0, -2.0]})
    loss = Regress(RegressOptions()).loss(torch.tensor([[3.0], [0.5]]), batch)
    assert float(loss.sum) == pytest.approx(4 + 6.25)
    assert loss.count == 2


TEXTS = ["good film", "the bad, unaffable film"]


def test_transformers_opens_it_and_gives_the_same_score(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = load(tiny_folder, task=Regress(RegressOptions(max_length=32)))
    save(bundle, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.problem_type == "regression"
    assert theirs.config.num_labels == 1
    padded = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    labels = torch.tensor([1.0, 4.0])
    encoded = bundle.tokenizer.encode(TEXTS)
    batch = PackedBatch.of(
        [e.ids for e in encoded],
        segments=[e.segments for e in encoded],
        targets={"score": labels.tolist()},
    )
    with torch.no_grad():
        expected = theirs(**padded, labels=labels)
        found = bundle.model.eval()(batch)
        loss = Regress(RegressOptions()).loss(found, batch)
    torch.testing.assert_close(found, expected.logits, rtol=0, atol=1e-5)
    assert float(loss.sum) / loss.count == pytest.approx(float(expected.loss), rel=1e-5)


def test_what_transformers_saved_is_a_regression(tiny_folder: Path, tmp_path: Path) -> None:
    kind = AutoModelForSequenceClassification
    kind.from_pretrained(tiny_folder, num_labels=1).save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((tiny_folder / "vocab.txt").read_bytes())
    bundle = load(tmp_path)
    assert isinstance(bundle.task, Regress)
    assert bundle.report is not None
    assert bundle.report.missing == ()


class TestFromConfig:
    BERT = {"architectures": ["BertForSequenceClassification"]}  # noqa: RUF012

    def test_one_output_is_a_score_unless_it_is_said_to_be_a_class(self) -> None:
        assert Regress.from_config({**self.BERT, "num_labels": 1}) is not None
        assert Classify.from_config({**self.BERT, "num_labels": 1}) is None
        said = {**self.BERT, "num_labels": 1, "problem_type": "single_label_classification"}
        assert Regress.from_config(said) is None
        assert Classify.from_config(said) is not None

    def test_several_scores_are_refused(self) -> None:
        with pytest.raises(CheckpointError, match="3 outputs"):
            Regress.from_config({**self.BERT, "num_labels": 3, "problem_type": "regression"})
