"""A notebook user, cell by cell: frames and lists of dicts in, tables and charts out.

A real kernel runs cells in tests/test_in_a_notebook.py; here is what each of them gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import pretune
from pretune.errors import DataError
from pretune.sklearn import TextClassifier
from pretune.tasks.added_metrics import METRICS
from pretune.training.run_result import RunResult

SMALL = {"train.epochs": 3, "train.batch_size": 4, "train.learning_rate": 3e-3}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Reviews as they come out of a query: a nullable label, an index of its own, an odd column."""
    words = ["good", "bad"] * 16
    return pd.DataFrame(
        {
            "stars <b>": range(32),
            "body": [f"the {word} film {number}" for number, word in enumerate(words)],
            "verdict": pd.Series(words, dtype="string"),
        }
    ).set_index(pd.Index(range(100, 132)))


class Watch(pretune.Callback):
    """Notes the figures, and ends the training once it is good enough."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_evaluation(self, moment: pretune.Moment) -> None:
        self.seen.append(moment.figures["share_of_good"])
        if moment.epoch >= 2:
            moment.stop("two epochs are enough for a first look")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def run(
    frame: pd.DataFrame, watch: Watch, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunResult]:
    @pretune.register("metric")
    def share_of_good(answers: list[str], truths: list[str]) -> float:
        return sum(answer == "good" for answer in answers) / len(answers)

    own = {
        "model.from": str(tiny_folder),
        "task.max_length": 16,
        "task.metrics": ["share_of_good"],
        "data.columns": {"text": "body", "label": "verdict"},
        "output": str(tmp_path_factory.mktemp("notebook") / "run"),
    }
    yield pretune.train(frame, {**SMALL, **own}, validation=0.25, quiet=True, callbacks=[watch])
    METRICS.own.discard("share_of_good")
    METRICS._loaded.pop("share_of_good", None)


@pytest.fixture(scope="module")
def model(run: RunResult) -> pretune.Model[pretune.ClassPrediction]:
    return pretune.load(run.folder, answers=pretune.ClassPrediction)


def test_training_keeps_the_metric_and_obeys_the_callback(run: RunResult, watch: Watch) -> None:
    assert run.metrics["share_of_good"] in watch.seen
    assert len(watch.seen) == 2
    assert run.stopped_early
    assert run.steps == 12  # two of three epochs of 24 records, four at a time
    table = run.to_dataframe()
    assert len(table) == 1
    assert table.loc[0, "share_of_good"] == run.metrics["share_of_good"]
    assert "<table" in run._repr_html_()


def test_answers_beside_the_rows_that_they_answer(
    model: pretune.Model[pretune.ClassPrediction], frame: pd.DataFrame
) -> None:
    answers = model(frame)
    table = answers.to_dataframe()
    assert [*table.columns] == ["stars <b>", "body", "verdict", "label", "score"]
    assert table["body"].tolist() == frame["body"].tolist()
    assert table["label"].tolist() == [answer.label for answer in answers]
    shown = answers._repr_html_()
    assert "stars &lt;b&gt;" in shown
    assert "<b>" not in shown
    # A list of dicts and bare texts are answered alike.
    for other in (frame.to_dict("records"), frame["body"].tolist(), frame["body"]):
        assert [answer.label for answer in model(other)] == table["label"].tolist()


def test_probabilities_are_those_of_the_answers(
    model: pretune.Model[pretune.ClassPrediction],
) -> None:
    texts = ["the good film", "the bad film"]
    shares = model.predict_proba(texts)
    assert shares.shape == (2, len(model.labels))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    for row, answer in zip(shares, model(texts), strict=True):
        assert model.labels[int(row.argmax())] == answer.label
        assert answer.score == pytest.approx(float(row.max()), rel=1e-4)


def test_a_chart_of_the_training(run: RunResult, tmp_path: Path) -> None:
    figure = run.plot()
    figure.savefig(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    drawn = [axis.get_ylabel() or axis.get_title() for axis in figure.axes]
    assert any("loss" in text for text in drawn)


def test_figures_of_each_class(
    model: pretune.Model[pretune.ClassPrediction], frame: pd.DataFrame
) -> None:
    result = model.evaluate(frame)
    right = [answer.label for answer in model(frame)] == frame["verdict"].to_numpy()
    assert result.metrics["accuracy"] == pytest.approx(right.mean())
    assert re.search(r"confusion|precision", result._repr_html_())


def test_a_missing_label_names_the_row(tiny_folder: Path) -> None:
    rows = [{"text": "good film", "label": "good"}, {"text": "bad film", "label": None}]
    with pytest.raises(DataError) as caught:
        pretune.train(rows * 3, {"model.from": str(tiny_folder)}, quiet=True)
    (sentence,) = caught.value._render_traceback_()
    assert "row 2, column 'label': no label there" in sentence
    assert "pretune.describe(DATA)" in sentence


def test_a_step_of_a_pipeline(tiny_folder: Path, frame: pd.DataFrame) -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    reader = TextClassifier(
        str(tiny_folder), epochs=10, batch_size=4, learning_rate=1e-3, max_length=16, random_state=0
    )
    steps = Pipeline([("lower", lower), ("reader", reader)])
    texts, labels = frame["body"].str.upper(), frame["verdict"].tolist()
    scores = cross_val_score(steps, texts, labels, cv=2)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()
    fitted = steps.fit(texts, labels)
    assert fitted.score(texts, labels) > 0.8  # the words of the labels are in the texts
    assert {*fitted.predict(["THE GOOD FILM 5", "THE BAD FILM 6"])} <= {"good", "bad"}
