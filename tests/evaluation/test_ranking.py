"""The order in which to label: uncertainty by its formulas, diversity by brute force."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import entropy

from pretune.bundle.bundle import Bundle
from pretune.data.records import Records
from pretune.errors import RunError
from pretune.evaluation.ranking import farthest_first, rank_texts, uncertainty
from pretune.inference.predict import Predictor
from pretune.tasks.classification.classify import ClassPrediction
from pretune.tasks.classification.multilabel import LabelsPrediction
from tests.tasks.every_task import CASES


@pytest.fixture(scope="module")
def bundle(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return CASES["classify"].bundle(tiny_folder, tmp_path_factory.mktemp("ranked"))


def answer(*scores: float) -> ClassPrediction:
    return ClassPrediction("a", max(scores), dict(zip("abcd", scores, strict=False)))


def test_uncertainty_by_its_formulas(bundle: Bundle) -> None:
    predictor, given = Predictor(bundle), answer(0.2, 0.7, 0.1)
    assert uncertainty(predictor, given, "entropy") == pytest.approx(
        entropy([0.2, 0.7, 0.1], base=3)
    )
    assert uncertainty(predictor, given, "margin") == pytest.approx(0.5)
    assert uncertainty(predictor, given, "confidence") == pytest.approx(0.45)
    for by in ("entropy", "margin", "confidence"):
        assert uncertainty(predictor, answer(0.0, 1.0), by) == 0.0
        assert uncertainty(predictor, answer(0.25, 0.25, 0.25, 0.25), by) == pytest.approx(1.0)
    flags = LabelsPrediction(["a"], {"a": 0.9, "b": 0.5})
    both = (entropy([0.9, 0.1], base=2) + 1.0) / 2
    assert uncertainty(predictor, flags, "entropy") == pytest.approx(both)


def test_equal_weights_choose_within_twice_the_best_radius() -> None:
    """Greedy k-center leaves no vector farther than twice what the best choice would (Gonzalez)."""
    vectors = np.random.default_rng(0).normal(size=(12, 2))

    def radius(chosen: list[int]) -> float:
        distances = np.linalg.norm(vectors[:, None] - vectors[chosen][None], axis=-1)
        return float(distances.min(1).max())

    best = min(radius([*some]) for some in itertools.combinations(range(12), 3))
    chosen = farthest_first(vectors, np.ones(12), 3)
    assert radius(chosen) <= 2 * best
    # Each is the farthest from those before.
    second = int(np.linalg.norm(vectors - vectors[chosen[0]], axis=1).argmax())
    assert chosen[1] == second


def test_weights_begin_with_the_most_uncertain_and_copies_come_last() -> None:
    vectors = np.array([[0.0, 0], [0, 0], [1, 0], [0, 1]])
    chosen = farthest_first(vectors, np.array([1.0, 0.9, 0.5, 0.4]), 4)
    assert chosen == [0, 2, 3, 1]
    # What is known already is no news.
    assert farthest_first(vectors, np.ones(4), 2, np.array([[0.0, 0.0]]))[0] in (2, 3)
    assert farthest_first(vectors, np.zeros(4), 2) == [0, 1]


def test_records_in_their_order(bundle: Bundle) -> None:
    records = CASES["classify"].records(12)
    ranked = rank_texts(bundle, records, choose="uncertain")
    assert sorted(ranked.order) == [*range(12)]
    values = ranked.uncertainty[ranked.order]
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    rows = ranked.rows()
    assert [row["rank"] for row in rows] == [*range(1, 13)]
    assert rows[0]["text"] == records.rows[ranked.order[0]]["text"]
    both = rank_texts(bundle, records, count=3, known=records.head(2))
    assert both.chosen == 3
    assert sorted(both.order) == [*range(12)]
    rest = both.uncertainty[both.order[3:]]
    assert rest.tolist() == sorted(rest.tolist(), reverse=True)


def test_tasks_and_words_that_rank_nothing(
    bundle: Bundle, tiny_folder: Path, tmp_path: Path
) -> None:
    case = CASES["regress"]
    with pytest.raises(RunError, match="task regress have no probabilities"):
        rank_texts(case.bundle(tiny_folder, tmp_path), case.records(3))
    with pytest.raises(RunError, match=r"nothing is ranked by 'entropie'\n.*'entropy'"):
        rank_texts(bundle, case.records(3), by="entropie")


def test_records_without_text_come_last(bundle: Bundle) -> None:
    rows = [{"text": text} for text in ("good film", " ", "bad", "", "the bad film")]
    records = Records(rows, "inbox.csv", columns=("text",))
    for choose in ("both", "diverse", "uncertain"):
        ranked = rank_texts(bundle, records, choose=choose, known=records.head(2))
        assert sorted(ranked.order[:3]) == [0, 2, 4], choose
        assert ranked.order[3:] == [1, 3]
        assert ranked.blank == 2
    assert rank_texts(bundle, records.take([3])).order == [0]
