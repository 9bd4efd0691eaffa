from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_class_weight

from pretune.data.batch import PackedBatch
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError, RecipeError
from pretune.recipe.recipe import Recipe
from pretune.tasks.classification.classify import (
    ClassificationMetrics,
    Classify,
    ClassifyOptions,
    ClassPrediction,
)
from pretune.tasks.classification.counts import shown_figure
from pretune.tasks.features import featurize
from pretune.tasks.labels import numbers_first
from pretune.tokenizers.load import load_tokenizer


def records(rows: list[dict[str, Any]], **more: Any) -> Records:
    columns = tuple(rows[0]) if rows else ()
    return Records(rows, "train.tsv", list(range(2, len(rows) + 2)), columns, **more)


def labelled(*labels: Any) -> Records:
    return records([{"text": f"text {i}", "label": label} for i, label in enumerate(labels)])


def fitted(data: Records, **options: Any) -> Classify:
    task = Classify(ClassifyOptions(**options))
    task.fit(data)
    return task


class TestLabels:
    def test_are_found_and_sorted(self) -> None:
        assert fitted(labelled("b", "a", "b", "c")).labels == ["a", "b", "c"]

    def test_numbers_sort_as_numbers(self) -> None:
        assert fitted(labelled("10", "2", "1", "x")).labels == ["1", "2", "10", "x"]

    def test_have_one_order_whatever_order_they_were_found_in(self) -> None:
        right = ["-inf", "01", "1", "1.0", "2", "10", "inf", "NaN", "nan", "x"]
        chance = random.Random(0)
        for _ in range(30):
            mixed = chance.sample(right, len(right))
            assert sorted(mixed, key=numbers_first) == right

    def test_of_the_options_keep_their_order(self) -> None:
        assert fitted(labelled("a", "b"), labels=["b", "a"]).labels == ["b", "a"]

    def test_of_a_map_are_shown_by_their_names(self, tiny_vocab_folder: Any) -> None:
        data = labelled("1", "0", "1")
        task = fitted(data, labels={"0": "no", "1": "yes"})
        features = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert task.labels == ["no", "yes"]
        assert features.targets["label"].tolist() == [1, 0, 1]

    def test_of_a_dataset_that_names_its_categories(self, tiny_vocab_folder: Any) -> None:
        data = records(
            [{"text": "a", "label": 1}, {"text": "b", "label": 0}],
            categories={"label": ["bad", "good"]},
        )
        task = fitted(data)
        features = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert task.labels == ["bad", "good"]
        assert features.targets["label"].tolist() == [1, 0]

    def test_of_yaml_are_spelled_as_those_of_json(
        self, tiny_vocab_folder: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "x.jsonl").write_text('{"text": "a", "label": true}\n' * 2, encoding="utf-8")
        (tmp_path / "r.yaml").write_text(
            "task:\n  name: classify\n  labels: {true: positive, false: negative}\n"
            "model: {from: bert-tiny}\ndata: {train: x.jsonl}\n",
            encoding="utf-8",
        )
        data = read(tmp_path / "x.jsonl")
        options = Recipe.load(tmp_path / "r.yaml", ["task.class_weights={positive: 2}"]).task
        assert isinstance(options, ClassifyOptions)
        task = Classify(options)
        task.fit(data)
        assert task.labels == ["positive", "negative"]
        features = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert features.targets["label"].tolist() == [0, 0]
        weighed = fitted(labelled(True, False), class_weights={True: 2}, labels=[True, False])
        assert (weighed.labels, weighed.weights) == (["True", "False"], [2.0, 1.0])
        assert fitted(labelled("yes", "no"), labels={"yes": True, "no": False}).labels[0] == "True"

    def test_whole_floats_are_numbers(self) -> None:
        assert fitted(labelled(1.0, 0.0)).labels == ["0", "1"]

    @pytest.mark.parametrize("missing", [None, "", 0.5, ["a"], float("nan")])
    def test_that_are_none_name_the_place(self, missing: Any) -> None:
        with pytest.raises(DataError, match=r"train\.tsv, line 3, column 'label'"):
            fitted(labelled("a", missing))

    def test_with_a_fraction_are_scores_or_names(self) -> None:
        with pytest.raises(DataError, match=r"found 0\.5") as caught:
            fitted(labelled("a", 0.5))
        assert "task.name=regress data.columns.score=label" in str(caught.value)

    @pytest.mark.parametrize(
        ("spellings", "labels", "truth"),
        [
            ([" 0", "0", "1 "], ["0", "1"], [0, 0, 1]),
            (["neg", " neg ", "pos\u3000"], ["neg", "pos"], [0, 0, 1]),
            (["1", "1.0", "0"], ["0", "1"], [1, 1, 0]),
            ([1.0, "1", "0.0", 0], ["0", "1"], [1, 1, 0, 0]),
            ([True, "true", "false", False], ["False", "True"], [1, 1, 0, 0]),
            (["True", "TRUE", "FALSE", "False"], ["False", "True"], [1, 1, 0, 0]),
            (["neg", ' "neg"', '"pos"'], ["neg", "pos"], [0, 0, 1]),
            # Other spellings of numbers may be names, such as those of versions.
            (["1.1", "1.10", "01", "1"], ["01", "1", "1.1", "1.10"], [2, 3, 0, 1]),
            (["neg", "Neg"], ["Neg", "neg"], [1, 0]),
        ],
    )
    def test_are_the_same_however_they_are_spelled(
        self, spellings: list[Any], labels: list[str], truth: list[int], tiny_vocab_folder: Any
    ) -> None:
        data = labelled(*spellings)
        task = fitted(data)
        assert task.labels == labels
        features = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert features.targets["label"].tolist() == truth

    def test_of_an_earlier_model_are_known_in_any_spelling(self, tiny_vocab_folder: Any) -> None:
        tokenizer = load_tokenizer(tiny_vocab_folder)
        task = Classify(ClassifyOptions(), [" 0", "1.0", "True"])
        features = featurize(task, labelled("0", "1", " 0", "1.0", "true", True), tokenizer)
        assert features.targets["label"].tolist() == [0, 1, 0, 1, 2, 2]
        mapped = Classify(ClassifyOptions(labels={"0": "no", "1": "yes"}), ["no", "yes"])
        features = featurize(mapped, labelled("0.0", "1", 1.0), tokenizer)
        assert features.targets["label"].tolist() == [0, 1, 1]

    def test_listed_twice_are_refused(self) -> None:
        with pytest.raises(RecipeError, match="lists the label 'a' twice"):
            fitted(labelled("a", "b"), labels=["a", "b", "a"])

    def test_of_what_is_held_back_are_known(self) -> None:
        data = replace(labelled("a", "b"), held_back=labelled("c", "a"))
        assert fitted(data).labels == ["a", "b", "c"]

    def test_only_one_is_refused(self) -> None:
        with pytest.raises(DataError, match="only one label"):
            fitted(labelled("a", "a"))

    def test_a_column_of_texts_is_refused(self) -> None:
        with pytest.raises(DataError, match="30 different labels"):
            fitted(labelled(*(f"text {i}" for i in range(30))))

    def test_unknown_in_evaluation_names_the_place_and_the_nearest(
        self, tiny_vocab_folder: Any
    ) -> None:
        task = fitted(labelled("refund", "delivery"))
        with pytest.raises(DataError) as caught:
            featurize(task, labelled("refund", "refnud"), load_tokenizer(tiny_vocab_folder))
        assert "train.tsv, line 3, column 'label': unknown label 'refnud'" in str(caught.value)
        assert "Did you mean 'refund'?" in str(caught.value)


class TestRemarks:
    def remarks(self, *labels: Any, **options: Any) -> str:
        data = labelled(*labels)
        return "\n".join(fitted(data, **options).remarks(data))

    def test_count_the_labels(self) -> None:
        first, *others = self.remarks("b", "a", "b", "b").split("\n")
        assert (first, len(others)) == ("2 labels: b (3), a (1)", 1)
        options = {"labels": {"0": "no", "1": "yes", "2": "never"}}
        assert self.remarks("1", "1.0", "0", **options) == "3 labels: yes (2), no (1), never (0)"

    def test_stay_on_their_line_whatever_a_label_is(self) -> None:
        text = self.remarks("a\n9 labels: \x1b[2J", "x" * 10_000)
        assert text.startswith(r"2 labels: a\n9 labels: \x1b[2J (1), xxx")
        assert text.count("\n") == 1  # of F1
        assert len(text) < 700

    def test_count_only_the_first_of_many(self) -> None:
        labels = [f"l{i}" for i in range(30) for _ in range(40 - i)]
        text = self.remarks(*labels)
        assert text.startswith("30 labels: l0 (40), l1 (39), ")
        assert text.endswith("l11 (29), and 18 more, down to 11")

    def test_say_what_is_read_as_one(self) -> None:
        assert "read as one label: '1' (2), '1.0' (1)" in self.remarks("1", "1", "1.0", "0")

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("neg", "Neg"),
            ("very bad", "very  bad"),
            ("very bad", "verybad"),
            ("01", "1"),
            ("1.1", "1.10"),
            ("é", "e\u0301"),
            ("neg", "ne\u200bg"),
            ("Ａ", "a"),
        ],
    )
    def test_doubt_labels_that_look_alike(self, one: str, other: str) -> None:
        text = self.remarks(one, one, other, "x")
        assert f"{one!r} (2), {other!r} (1); if they are the same" in text

    def test_doubt_several_in_one_line(self) -> None:
        """What makes one label of each group is told once."""
        text = self.remarks("a", "a", "A", "b", "b", "B", "c")
        assert "number: 'a' (2), 'A' (1); 'b' (2), 'B' (1); if they are the same" in text
        assert text.count("task.labels=") == 1

    def test_doubt_no_others(self) -> None:
        assert "differ only" not in self.remarks("a", "b", "1", "10", "a b", "c-d", "cd")

    def test_doubt_numbers_with_fractions(self) -> None:
        assert "task.name=regress" in self.remarks("0.5", "1", "2.5")
        assert "task.name=regress" not in self.remarks("v0.5", "1", "2")


class TestClassWeights:
    @given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=30))
    def test_auto_is_balanced_as_scikit_learn_has_it(self, labels: list[str]) -> None:
        known = list("abcd")
        task = fitted(labelled(*labels), labels=known, class_weights="auto")
        assert task.weights is not None
        present = sorted(set(labels))
        expected = compute_class_weight("balanced", classes=np.array(present), y=labels)
        found = dict(zip(known, task.weights, strict=True))
        assert [found[label] for label in present] == pytest.approx(expected.tolist())
        assert all(found[label] == 1.0 for label in known if label not in present)

    def test_given_ones_are_1_elsewhere(self) -> None:
        task = fitted(labelled("a", "b", "c"), class_weights={"b": 5})
        assert task.weights == [1.0, 5.0, 1.0]

    def test_of_no_label_name_the_nearest(self) -> None:
        with pytest.raises(DataError) as caught:
            fitted(labelled("ham", "spam"), class_weights={"spma": 2})
        assert "task.class_weights: no label is called 'spma'" in str(caught.value)
        assert "Did you mean 'spam'?" in str(caught.value)

    @pytest.mark.parametrize(
        "wrong", ["balanced", {"a": -1}, {"a": math.nan}, {"a": math.inf}, {"a": "x"}, 2]
    )
    def test_that_make_no_sense_are_refused(self, wrong: Any) -> None:
        with pytest.raises(ValidationError):
            ClassifyOptions(class_weights=wrong)

    def test_weigh_the_sum_and_are_kept(self) -> None:
        task = fitted(labelled("a", "a", "a", "b"), class_weights="auto")
        logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        batch = PackedBatch.of([[1], [2]], targets={"label": [0, 0]})
        again = task.with_state(task.state())
        for one in (task, again):
            loss = one.loss(logits, batch)
            plain = Classify(ClassifyOptions(), ["a", "b"]).loss(logits, batch)
            assert float(loss.sum) == pytest.approx(4 / (2 * 3) * float(plain.sum))
            assert loss.count == 2  # of examples: parts of a batch add up
            assert float(loss.parts["cross_entropy"]) == pytest.approx(float(plain.sum))


class TestFeatures:
    @pytest.mark.parametrize("empty", ["", " \t\u3000"])
    def test_an_empty_text_teaches_nothing(self, empty: str, tiny_vocab_folder: Any) -> None:
        data = records([{"text": "good", "label": "a"}, {"text": empty, "label": "b"}])
        task, tokenizer = Classify(ClassifyOptions(), ["a", "b"]), load_tokenizer(tiny_vocab_folder)
        features = featurize(task, data, tokenizer)
        assert (len(features), [s.record for s in features.skipped]) == (1, [1])
        assert len(featurize(task, data, tokenizer, evaluation=True)) == 1
        # It is answered all the same.
        assert len(featurize(task, data, tokenizer, with_targets=False)) == 2

    def test_a_pair_with_one_empty_text_is_a_pair(self, tiny_vocab_folder: Any) -> None:
        data = records([{"sentence1": "good", "sentence2": "", "label": "a"}])
        task = Classify(ClassifyOptions(pair=True), ["a", "b"])
        assert len(featurize(task, data, load_tokenizer(tiny_vocab_folder))) == 1

    def test_a_pair_has_two_segments(self, tiny_vocab_folder: Any) -> None:
        tokenizer = load_tokenizer(tiny_vocab_folder)
        data = records([{"sentence1": "good film", "sentence2": "bad", "label": "a"}])
        task = Classify(ClassifyOptions(pair=True), ["a", "b"])
        (feature,) = task.features(data, range(1), tokenizer, with_targets=True)
        assert tokenizer.tokens(feature.tokens) == [
            "[CLS]",
            "good",
            "film",
            "[SEP]",
            "bad",
            "[SEP]",
        ]
        assert list(feature.segments or ()) == [0, 0, 0, 0, 1, 1]

    def test_long_texts_are_cut_and_counted(self, tiny_vocab_folder: Any) -> None:
        data = records([{"text": "good " * 50, "label": "a"}, {"text": "bad", "label": "b"}])
        task = Classify(ClassifyOptions(max_length=8), ["a", "b"])
        features = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert features.lengths.tolist() == [8, 3]
        assert features.truncated == 1

    def test_a_million_characters_are_an_error_with_a_place(self, tiny_vocab_folder: Any) -> None:
        data = records([{"text": "ok", "label": "a"}, {"text": "x" * 10**6, "label": "b"}])
        task = Classify(ClassifyOptions(), ["a", "b"])
        with pytest.raises(DataError, match=r"line 3, column 'text': a text of 1,000,000 char"):
            featurize(task, data, load_tokenizer(tiny_vocab_folder))

    def test_without_targets_need_no_labels(self, tiny_vocab_folder: Any) -> None:
        task = Classify(ClassifyOptions(), ["a", "b"])
        features = featurize(
            task, records([{"text": "good"}]), load_tokenizer(tiny_vocab_folder), with_targets=False
        )
        assert features.targets == {}


def test_the_loss_is_the_sum_of_cross_entropies() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    batch = PackedBatch.of([[1], [2]], targets={"label": [0, 2]})
    loss = Classify(ClassifyOptions(), ["a", "b", "c"]).loss(logits, batch)
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert loss.count == 2
    assert float(loss.sum) == pytest.approx(-np.log(probabilities[[0, 1], [0, 2]]).sum(), abs=1e-6)


def test_a_prediction_has_the_score_of_every_label() -> None:
    task = Classify(ClassifyOptions(), ["a", "b"])
    (answer,) = task.predict(torch.tensor([[0.0, np.log(3.0)]]), PackedBatch.of([[1]]))
    assert answer.label == "b"
    assert answer.score == pytest.approx(0.75)
    assert answer.to_dict()["scores"] == pytest.approx({"a": 0.25, "b": 0.75})


class TestPositive:
    """Which of two labels F1 is of."""

    TRUTH, GUESS = ["spam", "ham", "spam", "spam", "ham"], ["spam", "spam", "ham", "spam", "ham"]

    def metrics(self, **options: Any) -> ClassificationMetrics:
        task = Classify(ClassifyOptions(**options), ["ham", "spam"])
        metrics, ids = task.metrics(), {"ham": 0, "spam": 1}
        guess = torch.tensor([ids[label] for label in self.GUESS])
        targets = {"label": [ids[label] for label in self.TRUTH]}
        batch = PackedBatch.of([[1]] * len(guess), targets=targets)
        metrics.update(torch.nn.functional.one_hot(guess, 2).float(), batch)
        return metrics

    @pytest.mark.parametrize(("given", "positive"), [(None, "spam"), ("ham", "ham")])
    def test_is_the_second_or_the_one_that_is_given(self, given: str | None, positive: str) -> None:
        metrics = self.metrics(positive=given)
        expected = sk.f1_score(self.TRUTH, self.GUESS, pos_label=positive)
        assert metrics.result()["f1"] == pytest.approx(expected)
        assert shown_figure("f1", metrics.details()) == f"f1 ({positive})"
        # As a comparison computes it, from sums of counts.
        task = Classify(ClassifyOptions(positive=given), ["ham", "spam"])
        grade = task.grader(records([{"text": "", "label": label} for label in self.TRUTH]))
        answers = [ClassPrediction(label, 1.0, {"ham": 0.5, "spam": 0.5}) for label in self.GUESS]
        counts = np.sum([grade(a, i).counts for i, a in enumerate(answers)], 0)
        figures = task.figures(np.array([0.0, 1.0, *counts]))
        assert figures["f1"] == pytest.approx(expected)

    def test_is_told_at_the_start_where_nobody_chose_it(self) -> None:
        data = labelled("ham", "spam")
        said = [*fitted(data).remarks(data)]
        assert "f1 is of the label 'spam'; of the other with task.positive=ham" in said
        assert not any("f1" in line for line in fitted(data, positive="ham").remarks(data))

    @pytest.mark.parametrize(
        ("labels", "positive", "why"),
        [
            (("a", "b"), "c", "no label is called 'c'"),
            (("a", "b", "c"), "a", "there are 3 labels"),
        ],
    )
    def test_must_be_one_of_two_labels(
        self, labels: tuple[str, ...], positive: str, why: str
    ) -> None:
        with pytest.raises(DataError, match=why):
            fitted(labelled(*labels), positive=positive)


class TestMetrics:
    @given(
        st.integers(2, 5).flatmap(
            lambda n: st.tuples(
                st.just(n),
                st.lists(
                    st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=40
                ),
            )
        )
    )
    def test_agree_with_scikit_learn(self, case: tuple[int, list[tuple[int, int]]]) -> None:
        count, pairs = case
        truth, guess = [t for t, _ in pairs], [g for _, g in pairs]
        labels = [str(i) for i in range(count)]
        metrics = Classify(ClassifyOptions(), labels).metrics()
        for start in range(0, len(pairs), 7):  # in several batches
            part = slice(start, start + 7)
            logits = torch.nn.functional.one_hot(torch.tensor(guess[part]), count).float()
            batch = PackedBatch.of([[1]] * len(logits), targets={"label": truth[part]})
            metrics.update(logits, batch)
        found = metrics.result()
        assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
        average = {"average": "binary"} if count == 2 else {"average": "macro"}
        expected = sk.f1_score(truth, guess, zero_division=0, **average)
        assert found["f1"] == pytest.approx(expected)
        assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(truth, guess))
        details = metrics.details()
        numbers = list(range(count))
        assert details["confusion"] == sk.confusion_matrix(truth, guess, labels=numbers).tolist()
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            truth, guess, labels=numbers, zero_division=0
        )
        for i, label in enumerate(labels):
            figures = details["per_class"][label]
            assert figures["precision"] == pytest.approx(precision[i])
            assert figures["recall"] == pytest.approx(recall[i])
            assert figures["f1"] == pytest.approx(f1[i])
            assert figures["support"] == support[i]


class TestFromConfig:
    def test_reads_the_labels_of_a_published_classifier(self) -> None:
        config = {
            "architectures": ["BertForSequenceClassification"],
            "id2label": {"1": "yes", "0": "no"},
            "max_position_embeddings": 64,
        }
        task = Classify.from_config(config)
        assert task is not None
        assert task.labels == ["no", "yes"]
        assert task.options.max_length == 64

    def test_is_none_for_another_head(self) -> None:
        assert Classify.from_config({"architectures": ["BertForMaskedLM"]}) is None
        assert Classify.from_config({}) is None

    @pytest.mark.parametrize("count", [10**9, -1, 0, "many", True, None, 1.5])
    def test_refuses_an_absurd_number_of_labels(self, count: Any) -> None:
        config = {"architectures": ["BertForSequenceClassification"], "num_labels": count}
        with pytest.raises(CheckpointError, match="num_labels"):
            Classify.from_config(config)


def test_a_list_of_labels_is_for_multilabel() -> None:
    data = Records([{"text": "a", "tags": ["x", "y"]}], "a.jsonl", [1], ("text", "tags"))
    with pytest.raises(DataError, match="line 1, column 'tags': a list") as caught:
        Classify(ClassifyOptions()).fit(data.mapped({"label": "tags"}, ()))
    assert "task.name=multilabel data.columns.labels=tags" in str(caught.value.hint)
