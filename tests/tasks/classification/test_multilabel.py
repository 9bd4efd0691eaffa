from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn import metrics as sk
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pretune.bundle.bundle import load, save
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.errors import DataError, RecipeError
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

    @pytest.mark.parametrize("wrong", [["a", "b", "a"]])
    def test_listed_twice_are_refused(self, wrong: list[str]) -> None:
        for option in ("labels", "label_columns"):
            data = records([{"text": "x", "labels": ["a"], "a": 1, "b": 0}])
            with pytest.raises(RecipeError, match="lists the label 'a' twice"):
                fitted(data, **{option: wrong})

    def test_have_one_source(self) -> None:
        with pytest.raises(ValidationError, match="not both"):
            MultilabelOptions(labels=["a"], label_columns=["a"])


#: The same labels of three records in every form; scikit-learn's matrix is the truth.
SETS = [{"joy", "love"}, set(), {"love"}]
NAMES = ["anger", "joy", "love"]
MATRIX = MultiLabelBinarizer(classes=NAMES).fit_transform(SETS)
FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda row: row,
    "int": lambda row: row.tolist(),
    "bool": lambda row: row.astype(bool).tolist(),
    "float": lambda row: row.astype(float).tolist(),
    "text": lambda row: str(row.tolist()),
    "numpy's text": str,
    "numpy's bools": lambda row: str(row.astype(bool)),
}


class TestZeroAndOne:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("options", [{}, {"labels": NAMES}], ids=["places", "names"])
    def test_lists_are_a_number_for_each_label(
        self, form: str, options: dict[str, Any], tiny_vocab_folder: Path
    ) -> None:
        data = labelled(*(FORMS[form](row) for row in MATRIX))
        task = fitted(data, **options)
        assert task.labels == options.get("labels", ["0", "1", "2"])
        assert flags_of(task, data, tiny_vocab_folder) == MATRIX.tolist()
        # A later file is read in the same way, be it of a single record.
        again = task.with_state(json.loads(json.dumps(task.state())))
        for row, truth in zip(MATRIX, MATRIX.tolist(), strict=True):
            assert flags_of(again, labelled(FORMS[form](row)), tiny_vocab_folder) == [truth]

    @pytest.mark.parametrize("keys", [["0", "1", "2"], ["2", "1", "0"], ["x", "y", "z"]])
    def test_a_map_names_the_places(self, keys: list[str], tiny_vocab_folder: Path) -> None:
        task = fitted(labelled([1, 0, 0], [0, 1, 1]), labels=dict(zip(keys, NAMES, strict=True)))
        assert task.labels == NAMES
        expected = [[0, 0, 1], [1, 1, 0]] if keys[0] == "2" else [[1, 0, 0], [0, 1, 1]]
        assert flags_of(task, labelled([1, 0, 0], [0, 1, 1]), tiny_vocab_folder) == expected

    def test_a_label_that_never_occurs_has_its_place(self) -> None:
        assert fitted(labelled([1, 0, 0], [0, 1, 0])).labels == ["0", "1", "2"]

    def test_as_many_names_as_numbers_are_needed(self) -> None:
        with pytest.raises(DataError, match=r"lists of 3 numbers 0 or 1, but task\.labels has 2"):
            fitted(labelled([1, 0, 0], [0, 1, 1]), labels=["a", "b"])

    def test_names_are_read_beside_them(self, tiny_vocab_folder: Path) -> None:
        task = fitted(labelled([1, 0, 0], [0, 1, 1]), labels=NAMES)
        assert flags_of(task, labelled("joy|love", [], ""), tiny_vocab_folder)[0] == [0, 1, 1]

    @pytest.mark.parametrize("wrong", [[1, 0], [0, 2, 0], [2], 1, [1, 0, 0, 0]])
    def test_another_number_is_refused_later(self, wrong: Any, tiny_vocab_folder: Path) -> None:
        task = fitted(labelled([1, 0, 0], [0, 1, 1]))
        with pytest.raises(DataError, match=r"line 2.*expected 3 numbers 0 or 1"):
            flags_of(task, labelled(wrong), tiny_vocab_folder)

    def test_numbers_of_labels_stay_names(self, tiny_vocab_folder: Path) -> None:
        task = fitted(labelled([0, 3], [1]))
        assert (task.labels, task.flags) == (["0", "1", "3"], False)
        assert flags_of(task, labelled([0, 1]), tiny_vocab_folder) == [[1, 1, 0]]
        with pytest.raises(DataError, match="expected names of labels, such as 0"):
            flags_of(task, labelled([1, 0, 0]), tiny_vocab_folder)

    def test_a_model_of_transformers_reads_them_by_its_outputs(
        self, tiny_vocab_folder: Path
    ) -> None:
        config = {
            "architectures": ["BertForSequenceClassification"],
            "problem_type": "multi_label_classification",
            "id2label": dict(enumerate(NAMES)),
        }
        task = Multilabel.from_config(json.loads(json.dumps(config)))
        assert task is not None
        for one in (task, task.with_state(task.state())):
            data = labelled([0, 1, 1], ["joy"])
            assert flags_of(one, data, tiny_vocab_folder) == [[0, 1, 1], [0, 1, 0]]

    def test_decide_what_is_cached(self) -> None:
        one, other = (fitted(labelled(*rows)) for rows in ([[0, 1], [1, 0]], [[0, 1], [0]]))
        assert one.labels == other.labels
        assert one.feature_key() != other.feature_key()


def test_lists_of_names_written_as_text(tiny_vocab_folder: Path) -> None:
    data = labelled("['joy', 'love']", "[]", "['love']")
    task = fitted(data)
    assert task.labels == ["joy", "love"]
    assert flags_of(task, data, tiny_vocab_folder) == [[1, 1], [0, 0], [0, 1]]


class TestRemarks:
    def remarks(self, *labels: Any, **options: Any) -> str:
        data = labelled(*labels)
        return "\n".join(fitted(data, **options).remarks(data))

    def test_count_the_labels(self) -> None:
        text = self.remarks("joy|love", "love", "", "love")
        assert text == "2 labels: love (3), joy (1)\n1 of 4 records have no label"

    @pytest.mark.parametrize("separator", [",", ";", "、"])
    def test_doubt_a_separator_that_never_occurs(self, separator: str) -> None:
        text = self.remarks(f"joy{separator} anger", "joy")
        assert f"task.separator='{separator}' reads them as several" in text
        assert "task.separator" not in self.remarks(f"joy{separator} anger", "joy|anger")

    @pytest.mark.parametrize("joined", ["joy, anger", "anger;joy"])
    def test_doubt_a_label_that_holds_another(self, joined: str) -> None:
        told = f"labels: {joined!r} is read as one label, though 'joy' is one too"
        assert told in self.remarks(joined, "joy|fear")
        assert told in self.remarks([joined], ["joy"])
        assert "though" not in self.remarks(joined, "fear|hope")

    def test_a_label_with_a_comma_is_in_quotes_where_labels_are_counted(self) -> None:
        assert "3 labels: a (2), 'a, b' (1), c (1)" in self.remarks("a", "a, b", "a|c")

    def test_tell_how_lists_are_read(self) -> None:
        assert "lists of 0 and 1, a number for each of 2, named by" in self.remarks([1, 0], [0, 0])
        assert "in the order of task.labels" in self.remarks([1, 0], [0, 1], labels=["b", "a"])
        assert "2 lists written as text, such as ['a']" in self.remarks("['a']", "['b', 'a']")

    def test_doubt_labels_that_are_everywhere(self) -> None:
        assert "nothing to learn" in self.remarks(["a", "b"], ["b", "a"])


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
