from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn import metrics as sk
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pretune.bundle.bundle import load, save
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.classification.multilabel import (
    Multilabel,
    MultilabelMetrics,
    MultilabelOptions,
    best_threshold,
)
from pretune.tasks.features import featurize
from pretune.tokenizers.load import load_tokenizer


def records(rows: list[dict[str, Any]], **more: Any) -> Records:
    columns = tuple(rows[0])
    return Records(rows, "train.tsv", list(range(2, len(rows) + 2)), columns, **more)


def labelled(*labels: Any, **more: Any) -> Records:
    return records([{"text": "good", "labels": one} for one in labels], **more)


def fitted(data: Records, **options: Any) -> Multilabel:
    task = Multilabel(MultilabelOptions(**options))
    task.fit(data)
    return task


def flags_of(task: Multilabel, data: Records, folder: Path) -> list[list[int]]:
    found: list[list[int]] = (
        featurize(task, data, load_tokenizer(folder)).targets["labels"].tolist()
    )
    return found


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "options"),
        [
            ([["b", "a"], [], ["a", "a"]], {}),
            (["b|a", "", " a |"], {}),
            (["b, a", "", "a"], {"separator": ","}),
        ],
        ids=["lists", "bars", "commas"],
    )
    def test_are_lists_or_texts(
        self, labels: list[Any], options: dict[str, Any], tiny_vocab_folder: Path
    ) -> None:
        data = labelled(*labels)
        task = fitted(data, **options)
        assert task.labels == ["a", "b"]
        assert flags_of(task, data, tiny_vocab_folder) == [[1, 1], [0, 0], [1, 0]]

    def test_are_columns_of_0_and_1(self, tiny_vocab_folder: Path) -> None:
        data = records([{"text": "a", "x": "1", "y": 0}, {"text": "b", "x": 0.0, "y": True}])
        task = fitted(data, label_columns=["x", "y"])
        assert list(task.targets) == ["x", "y"]
        assert flags_of(task, data, tiny_vocab_folder) == [[1, 0], [0, 1]]

    @pytest.mark.parametrize("wrong", ["yes", "", None, 2])
    def test_of_columns_are_nothing_else(self, wrong: Any, tiny_vocab_folder: Path) -> None:
        data = records([{"text": "a", "x": wrong}])
        with pytest.raises(DataError, match=r"train\.tsv, line 2, column 'x': expected 0 or 1"):
            flags_of(fitted(data, label_columns=["x"]), data, tiny_vocab_folder)

    def test_of_a_dataset_are_numbers_with_names(self, tiny_vocab_folder: Path) -> None:
        data = labelled([1], [2, 0], categories={"labels": ["joy", "fear", "love"]})
        task = fitted(data)
        assert task.labels == ["joy", "fear", "love"]
        assert flags_of(task, data, tiny_vocab_folder) == [[0, 1, 0], [1, 0, 1]]

    def test_of_a_map_are_shown_by_their_names(self, tiny_vocab_folder: Path) -> None:
        data = labelled(["1", "0"], ["1"])
        task = fitted(data, labels={"0": "no", "1": "yes"})
        assert flags_of(task, data, tiny_vocab_folder) == [[1, 1], [0, 1]]

    def test_unknown_name_the_place_and_the_nearest(self, tiny_vocab_folder: Path) -> None:
        task = fitted(labelled("refund|delivery"))
        with pytest.raises(DataError) as caught:
            flags_of(task, labelled("refund", "delivery|refnud"), tiny_vocab_folder)
        assert "train.tsv, line 3, column 'labels': unknown label 'refnud'" in str(caught.value)
        assert "Did you mean 'refund'?" in str(caught.value)

    @pytest.mark.parametrize("wrong", [None, {"a": 1}, [None], [["a"]], True])
    def test_that_are_none_name_the_place(self, wrong: Any) -> None:
        with pytest.raises(DataError, match=r"train\.tsv, line 3, column 'labels'"):
            fitted(labelled(["a"], wrong))

    def test_none_at_all_are_refused(self) -> None:
        with pytest.raises(DataError, match="no record has a label"):
            fitted(labelled([], ""))

    def test_have_one_source(self) -> None:
        with pytest.raises(ValidationError, match="not both"):
            MultilabelOptions(labels=["a"], label_columns=["a"])


def test_the_loss_is_that_of_torch() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    batch = PackedBatch.of([[1]] * 5, targets={"labels": truth[:, None].tolist()})
    loss = Multilabel(MultilabelOptions(), ["a", "b", "c"]).loss(logits, batch)
    expected = torch.nn.BCEWithLogitsLoss()(logits, truth.float())
    assert loss.count == 15
    assert float(loss.sum) / loss.count == pytest.approx(float(expected))


SCORES = st.integers(0, 8).map(lambda n: n / 8)  # ties, too
COLUMN = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=12)


class TestThresholds:
    @given(COLUMN)
    def test_none_is_better(self, column: list[tuple[float, bool]]) -> None:
        """Against every threshold that makes a difference."""
        scores, truth = (np.array(values) for values in zip(*column, strict=True))

        def f1(least: float) -> float:
            return float(sk.f1_score(truth, scores >= least, zero_division=0))

        found = best_threshold(scores, truth)
        everything = [0.5, *(step / 16 for step in range(17))]
        assert f1(found) == pytest.approx(max(map(f1, everything)))
        assert found == 0.5 or f1(0.5) < f1(found)

    def test_of_what_is_never_true_is_a_half(self) -> None:
        assert best_threshold(np.array([0.9, 0.1]), np.array([False, False])) == 0.5

    def test_decide_the_answer_and_are_saved(self, tiny_folder: Path, tmp_path: Path) -> None:
        bundle = load(tiny_folder, task=Multilabel(MultilabelOptions(max_length=16), ["a", "b"]))
        task = bundle.task
        assert isinstance(task, Multilabel)
        metrics = task.metrics()
        logits = torch.tensor([[-2.0, 2.0], [-3.0, 1.0], [-1.0, -1.0]])
        truth = [[[1, 1]], [[0, 0]], [[1, 0]]]
        metrics.update(logits, PackedBatch.of([[1]] * 3, targets={"labels": truth}))
        before = metrics.result()
        task.calibrate(metrics)
        after = metrics.result()
        assert before["micro_f1"] < after["micro_f1"] == 1.0
        assert after["exact_match"] == 1.0
        assert task.predict(logits, PackedBatch.of([[1]] * 3))[0].labels == ["a", "b"]
        save(bundle, tmp_path)
        again = load(tmp_path).task
        assert isinstance(again, Multilabel)
        assert again.thresholds == task.thresholds
        assert again.metrics().thresholds == task.thresholds
        # To be trained on: the head is taken over, and what was chosen for it.
        more = load(tmp_path, task=Multilabel(MultilabelOptions(max_length=16), ["a", "b"]))
        assert more.report is not None
        assert more.report.missing == ()
        assert isinstance(more.task, Multilabel)
        assert more.task.thresholds == task.thresholds

    def test_stay_where_they_are_if_asked(self) -> None:
        task = Multilabel(MultilabelOptions(tune_thresholds=False), ["a"])
        metrics = task.metrics()
        batch = PackedBatch.of([[1]], targets={"labels": [[[1]]]})
        metrics.update(torch.tensor([[-3.0]]), batch)
        task.calibrate(metrics)
        assert task.thresholds == [0.5]


TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.tuples(
            st.lists(SCORES, min_size=width, max_size=width),
            st.lists(st.booleans(), min_size=width, max_size=width),
        ),
        min_size=1,
        max_size=15,
    )
)


@given(TABLES, st.integers(1, 5))
def test_metrics_agree_with_scikit_learn(table: list[Any], size: int) -> None:
    scores = np.array([row for row, _ in table])
    truth = np.array([row for _, row in table], dtype=int)
    width = scores.shape[1]
    thresholds = [0.3 + 0.1 * i for i in range(width)]
    labels = [str(i) for i in range(width)]
    parts = [MultilabelMetrics(labels, thresholds) for _ in range(2)]
    for i, start in enumerate(range(0, len(truth), size)):
        rows = slice(start, start + size)
        targets = {"labels": truth[rows, None].tolist()}
        batch = PackedBatch.of([[1]] * len(truth[rows]), targets=targets)
        parts[i % 2].update(torch.logit(torch.tensor(scores[rows])), batch)
    parts[1].merge(parts[0])
    found = parts[1].result()
    guess = (scores >= np.array(thresholds)).astype(int)
    options: dict[str, Any] = {"zero_division": 0}
    if width == 1:  # scikit-learn takes one column for two classes
        options["labels"] = [1]
    for name in ("micro", "macro"):
        expected = sk.f1_score(truth, guess, average=name, **options)
        assert found[f"{name}_f1"] == pytest.approx(expected)
    assert found["exact_match"] == pytest.approx(sk.accuracy_score(truth, guess))
    for i, label in enumerate(labels):
        figures = parts[1].details()["per_class"][label]
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score)):
            assert figures[name] == pytest.approx(score(truth[:, i], guess[:, i], zero_division=0))
        assert figures["support"] == truth[:, i].sum()


TEXTS = ["good film", "the bad, unaffable film"]


def test_transformers_opens_it_and_gives_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Multilabel(MultilabelOptions(max_length=32), ["a", "b", "c"])
    bundle = load(tiny_folder, task=task)
    save(bundle, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    padded = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
    truth = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    encoded = bundle.tokenizer.encode(TEXTS)
    batch = PackedBatch.of(
        [e.ids for e in encoded],
        segments=[e.segments for e in encoded],
        targets={"labels": truth.int()[:, None].tolist()},
    )
    with torch.no_grad():
        expected = theirs(**padded, labels=truth)
        found = bundle.model.eval()(batch)
        loss = task.loss(found, batch)
    torch.testing.assert_close(found, expected.logits, rtol=0, atol=1e-5)
    assert float(loss.sum) / loss.count == pytest.approx(float(expected.loss), rel=1e-5)
    (tmp_path / "pretune.json").unlink()  # as transformers would have saved it
    again = load(tmp_path)
    assert isinstance(again.task, Multilabel)
    assert again.task.labels == ["a", "b", "c"]


def test_a_head_for_one_label_is_not_taken_over(tiny_folder: Path, tmp_path: Path) -> None:
    save(load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["a", "b"])), tmp_path)
    bundle = load(tmp_path, task=Multilabel(MultilabelOptions(max_length=16), ["a", "b"]))
    assert bundle.report is not None
    assert set(bundle.report.missing) == {"classifier.weight", "classifier.bias"}
