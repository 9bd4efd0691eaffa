"""The estimators of scikit-learn: its own checks, its tools, and what is particular to texts."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import pretune
from pretune.bundle.bundle import load
from pretune.sklearn import EstimatorError, Tagger, TextClassifier, TextRegressor

TEXTS = [f"{'the ' * (i % 3)}{word} film" for i in range(8) for word in ("good", "bad")]
LABELS = ["+", "-"] * 8


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_vocab_folder: Path) -> str:
    """A random BERT with one layer of width 16, and a vocabulary of letters."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("small-bert")
    text = (tiny_vocab_folder / "vocab.txt").read_text(encoding="utf-8")
    config = BertConfig(
        vocab_size=len(text.splitlines()),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text(text, encoding="utf-8")
    return str(folder)


def classifier(small: str, **more: Any) -> TextClassifier:
    options: dict[str, Any] = {"epochs": 8, "batch_size": 8, "learning_rate": 3e-2}
    options["overrides"] = {"train.warmup": 0}
    options |= {"model": small, "max_length": 16, "random_state": 0, **more}
    return TextClassifier(**options)


@pytest.fixture(scope="module")
def fitted(small: str) -> TextClassifier:
    """A classifier that was trained."""
    return classifier(small).fit(TEXTS, LABELS)


class TestClassifier:
    def test_learns_and_answers_in_its_own_classes(self, fitted: TextClassifier) -> None:
        model = fitted
        assert model.classes_.tolist() == ["+", "-"]
        assert model.score(TEXTS, LABELS) == 1.0
        shares = model.predict_proba(TEXTS[:3])
        assert shares.shape == (3, 2)
        assert shares.sum(1) == pytest.approx(1)
        assert model.predict(TEXTS[:3]).tolist() == model.classes_[shares.argmax(1)].tolist()
        # The same model elsewhere in pretune says the same.
        (answer,) = pretune.predict(model.bundle_, TEXTS[:1])
        assert answer.to_dict()["scores"]["+"] == pytest.approx(shares[0, 0], abs=1e-6)

    @pytest.mark.parametrize(
        "classes", [[3, 7], [True, False], [1.0, 2.0], [" a", "a"], ["", "b"]], ids=str
    )
    def test_classes_keep_their_type(self, classes: list[Any], small: str) -> None:
        labels = np.array(classes * 8)
        model = classifier(small, epochs=1).fit(np.array(TEXTS), labels)
        assert model.classes_.tolist() == sorted(classes)
        assert model.predict(TEXTS).dtype == labels.dtype

    @pytest.mark.parametrize(
        "kind",
        [
            list,
            tuple,
            np.array,
            pd.Series,
            lambda x: pd.DataFrame({"t": x}),
            lambda x: [[t] for t in x],
        ],
    )
    def test_texts_come_in_any_shape(self, kind: Any, fitted: TextClassifier) -> None:
        model = fitted
        assert model.predict_proba(kind(TEXTS)).tolist() == model.predict_proba(TEXTS).tolist()

    def test_pairs(self, small: str) -> None:
        pairs = [(text, "the film") for text in TEXTS]
        model = classifier(small, epochs=1).fit(pairs, LABELS)
        assert model.n_features_in_ == 2
        assert model.predict(pd.DataFrame(pairs)).tolist() == model.predict(pairs).tolist()
        with pytest.raises(ValueError, match="X has 1 features, but TextClassifier is expecting 2"):
            model.predict(TEXTS)

    def test_the_seed_decides_and_nothing_outside_changes(self, small: str) -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
        before = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
        one = classifier(small, epochs=1).fit(TEXTS, LABELS).predict_proba(TEXTS)
        assert (torch.rand(1), np.random.rand(), random.random()) == before  # noqa: NPY002
        assert (
            classifier(small, epochs=1).fit(TEXTS, LABELS).predict_proba(TEXTS).tolist()
            == one.tolist()
        )
        other = classifier(small, epochs=1, random_state=1).fit(TEXTS, LABELS)
        assert other.predict_proba(TEXTS).tolist() != one.tolist()

    def test_a_part_at_a_time(self, small: str) -> None:
        model = classifier(small, batch_size=4)
        with pytest.raises(ValueError, match="classes must be passed on the first call"):
            model.partial_fit(TEXTS[:4], LABELS[:4])
        for start in (0, 8, 0, 8):
            part = slice(start, start + 8)
            model.partial_fit(TEXTS[part], LABELS[part], classes=["+", "-"])
        with pytest.raises(ValueError, match="'x' is none of the classes"):
            model.partial_fit(TEXTS[:2], ["x", "+"])
        # The moments of AdamW go on: two halves in two calls are not two first steps.
        again = pickle.loads(pickle.dumps(model)).partial_fit(TEXTS[:4], LABELS[:4])  # noqa: S301
        model.partial_fit(TEXTS[:4], LABELS[:4])
        assert again.predict_proba(TEXTS).tolist() == model.predict_proba(TEXTS).tolist()
        assert model._passes == again._passes == 5
        # `fit` begins anew.
        assert model.set_params(epochs=1).fit(TEXTS, LABELS)._passes == 1

    def test_pickled_and_saved(self, fitted: TextClassifier, tmp_path: Path) -> None:
        model = fitted
        back = pickle.loads(pickle.dumps(model))  # noqa: S301
        assert back.predict_proba(TEXTS).tolist() == model.predict_proba(TEXTS).tolist()
        model.save(tmp_path / "model")
        task = load(tmp_path / "model").task
        assert task is not None
        assert task.state()["labels"] == ["+", "-"]
        with pytest.raises(EstimatorError, match="exists already"):
            model.save(tmp_path / "model")

    @pytest.mark.parametrize(
        ("texts", "labels", "told"),
        [
            ([1.0, 2.0], [0, 1], "expected a text in row 0, found a float"),
            (["a", None], [0, 1], "expected a text in row 1, found nothing"),
            ("a film", [0, 1], "expected a sequence of texts"),
            ([], [], "found 0 texts, while a minimum of 1 is required"),
            (["a", "b"], [0, 0], "only one class, 0$"),
            (["a", "b"], None, "requires y to be passed, but the target y is None"),
            (["a", "b"], [0.5, 0.7], "continuous"),
            (["a", "b"], [0, 1, 0], "inconsistent numbers of samples"),
            ([("a", "b", "c")] * 2, [0, 1], "has one text or two, found 3"),
        ],
    )
    def test_what_cannot_be_learned_is_a_value_error(
        self, texts: Any, labels: Any, told: str, small: str
    ) -> None:
        with pytest.raises(ValueError, match=told):
            classifier(small).fit(texts, labels)

    def test_parameters_are_checked_when_they_are_used(self, small: str) -> None:
        for wrong, told in (
            ({"model": "/nowhere"}, "nowhere"),
            ({"overrides": {"data.train": "x"}}, "'data.train' is none of the keys"),
            ({"overrides": {"train.epoch": 1}}, "Did you mean 'train.epochs'"),
            ({"epochs": -1}, "epochs"),
        ):
            with pytest.raises(ValueError, match=told):
                classifier(small, **wrong).fit(TEXTS, LABELS)
        with pytest.raises(NotFittedError):
            classifier(small).predict(TEXTS)


class TestRegressor:
    def test_one_target_for_all_is_named_in_its_unit(self, small: str) -> None:
        with pytest.raises(ValueError, match="y: every target is 5; there is nothing to learn"):
            TextRegressor(small).fit(TEXTS, [5.0] * len(TEXTS))

    def test_targets_come_back_in_their_unit(self, small: str) -> None:
        prices = np.array([250_000.0, 90_000.0] * 8)
        model = TextRegressor(
            small,
            epochs=8,
            batch_size=8,
            learning_rate=3e-2,
            max_length=16,
            overrides={"train.warmup": 0},
            random_state=0,
        ).fit(TEXTS, prices)
        assert model.score(TEXTS, prices) > 0.9
        back = pickle.loads(pickle.dumps(model))  # noqa: S301
        assert back.predict(TEXTS).tolist() == model.predict(TEXTS).tolist()
        before = model.predict(TEXTS)
        model.partial_fit(TEXTS[:4], prices[:4])
        assert (model.mean_, model.predict(TEXTS).tolist() != before.tolist()) == (170_000.0, True)
        with pytest.raises(ValueError, match="NaN"):
            model.fit(TEXTS[:2], [1.0, float("nan")])


class TestTagger:
    WORDS = [["good", "film", "x1"], ["the", "good"]] * 6
    TAGS = [["B-A", "O", "O"], ["O", "B-A"]] * 6

    def test_learns_and_is_scored_by_entities(self, small: str) -> None:
        model = Tagger(
            small, epochs=8, batch_size=6, learning_rate=3e-2, max_length=16, random_state=0
        ).fit(self.WORDS, self.TAGS)
        assert model.predict(self.WORDS) == self.TAGS
        assert model.score(self.WORDS, self.TAGS) == 1.0
        assert set(model.classes_) == {"O", "B-A", "I-A"}
        back = pickle.loads(pickle.dumps(model))  # noqa: S301
        assert back.predict(self.WORDS[:2]) == self.TAGS[:2]
        assert cross_val_score(
            clone(model).set_params(epochs=1), self.WORDS, self.TAGS, cv=2
        ).shape == (2,)

    @pytest.mark.parametrize(
        ("words", "tags", "told"),
        [
            (["good film"], [["O", "O"]], "sentence 0 is a str"),
            ([["good", "film"]], [["O"]], "1 tags? for 2 words|2 words"),
            ([], [], "found 0 sentences"),
        ],
    )
    def test_what_is_no_sentence(self, words: Any, tags: Any, told: str, small: str) -> None:
        with pytest.raises(ValueError, match=told):
            Tagger(small, random_state=0).fit(words, tags)


class TestToolsOfScikitLearn:
    def test_pipeline_grid_search_and_cross_validation(self, small: str) -> None:
        steps = [
            ("lower", FunctionTransformer(lambda texts: [text.lower() for text in texts])),
            ("model", classifier(small, epochs=1)),
        ]
        shouted = [text.upper() for text in TEXTS]
        grid = {"model__learning_rate": np.array([1e-6, 1e-2]), "model__batch_size": np.array([8])}
        search = GridSearchCV(Pipeline(steps), grid, cv=2, scoring="accuracy").fit(shouted, LABELS)
        assert search.best_params_["model__learning_rate"] in (1e-6, 1e-2)
        assert len(search.cv_results_["mean_test_score"]) == 2
        assert search.predict(shouted).shape == (16,)
        scores = cross_val_score(
            classifier(small, epochs=1), TEXTS, LABELS, cv=2, scoring=make_scorer(lambda t, p: 1.0)
        )
        assert scores.tolist() == [1.0, 1.0]

    def test_tags_and_parameters(self, small: str) -> None:
        model = classifier(small)
        tags = model.__sklearn_tags__()
        assert tags.input_tags.string
        assert not tags.input_tags.two_d_array
        assert clone(model).get_params() == model.get_params()
        assert "TextClassifier(" in repr(model)
        with pytest.raises(ValueError, match="Invalid parameter 'epoch'"):
            model.set_params(epoch=1)

    def test_check_estimator_has_little_to_ask_of_texts(self, small: str) -> None:
        for kind in (TextClassifier, TextRegressor, Tagger):
            with pytest.warns(UserWarning, match="Can't test estimator"):
                results = check_estimator(kind(small), on_fail=None, on_skip=None)
            assert {result["status"] for result in results} == {"passed"}


# scikit-learn's checks are about tables of numbers. So that they can be asked, numbers are written
# as texts here; scikit-learn itself checks the table, and all that follows is ours.


def _written(numbers: np.ndarray) -> list[tuple[str, ...]]:
    """A text for each row: for each number a letter, as often as it has units above -4."""
    rows = []
    for row in np.asarray(numbers, dtype=float):
        counts = [int(np.clip(round(4 + 2 * value), 0, 12)) for value in row[:3]]
        rows.append((" ".join("xyz"[place] for place, n in enumerate(counts) for _ in range(n)),))
    return rows


class _OfNumbers:
    def _rows(self, X: Any, *, reset: bool) -> list[tuple[str, ...]]:  # noqa: N803
        return _written(validate_data(self, X, reset=reset, dtype="numeric"))

    def _records(self, rows: Any, targets: Any) -> Any:
        width, self.n_features_in_ = self.n_features_in_, 1
        try:
            return super()._records(rows, targets)  # type: ignore[misc]
        finally:
            self.n_features_in_ = width

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.string, tags.input_tags.two_d_array = False, True
        tags.input_tags.one_d_array = False
        for own in (tags.classifier_tags, tags.regressor_tags):
            if own is not None:
                own.poor_score = True  # one layer, and a few updates
        return tags


class NumberClassifier(_OfNumbers, TextClassifier):
    def _train_classes(self, *rows: Any, **how: Any) -> None:
        width, self.n_features_in_ = self.n_features_in_, 1
        try:
            super()._train_classes(*rows, **how)
        finally:
            self.n_features_in_ = width


class NumberRegressor(_OfNumbers, TextRegressor):
    def _train_scores(self, *rows: Any, **how: Any) -> None:
        width, self.n_features_in_ = self.n_features_in_, 1
        try:
            super()._train_scores(*rows, **how)
        finally:
            self.n_features_in_ = width


#: The checks that fail, and why; everything else that scikit-learn 1.9 asks passes.
EXPECTED: dict[str, str] = {}
#: How many there are.
CHECKS = {"NumberClassifier": 55, "NumberRegressor": 52}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NumberClassifier, NumberRegressor])
def test_the_checks_of_scikit_learn_on_numbers_written_as_texts(kind: Any, small: str) -> None:
    model = kind(small, epochs=1, batch_size=64, learning_rate=1e-3, max_length=40, random_state=0)
    results = check_estimator(model, on_fail=None, on_skip=None)
    failed = {
        r["check_name"]: str(r["exception"])[:300] for r in results if r["status"] == "failed"
    }
    assert {name: told for name, told in failed.items() if name not in EXPECTED} == {}
    assert len(results) == CHECKS[kind.__name__]
