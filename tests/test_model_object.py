"""The model object: everything that can be asked of a model."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import pretune
from pretune.bundle.bundle import Bundle
from pretune.errors import CheckpointError, DataError, PretuneError, RunError
from pretune.inference.predict import Predictor
from pretune.model_object import Model
from pretune.tasks.classification.classify import Classify, ClassifyOptions, ClassPrediction
from pretune.tasks.classification.multilabel import Multilabel, MultilabelOptions
from pretune.tasks.regression.regress import Regress, RegressOptions
from pretune.tasks.tagging.tag import TagPrediction

TEXTS = ["the good film", "bad", ""]


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model[ClassPrediction]:
    torch.manual_seed(0)
    task = Classify(ClassifyOptions(max_length=16), ["bad", "good", "<b>so</b>"])
    made = pretune.load(tiny_folder, task=task)
    made.columns = {"text": "body"}
    return made.to("cpu")


class TestInputs:
    @pytest.mark.parametrize(
        "inputs",
        [
            tuple(TEXTS),
            pd.Series(TEXTS, index=[5, 6, 7]),
            pl.Series([*TEXTS[:2], None]),
            np.array(TEXTS),
            [{"text": text} for text in TEXTS],
            [{"body": text, "id": 1} for text in TEXTS],
            {"body": [*TEXTS[:2], None]},
            pd.DataFrame({"body": [*TEXTS[:2], None], "label": ["good"] * 3}),
            pl.DataFrame({"text": TEXTS}),
        ],
        ids=lambda inputs: type(inputs).__name__,
    )
    def test_of_every_form_have_the_same_answers(
        self, model: Model[ClassPrediction], inputs: Any
    ) -> None:
        assert model.predict(inputs) == model.predict(TEXTS)

    def test_a_single_text(self, model: Model[ClassPrediction]) -> None:
        assert model("bad") == model.predict(["bad"]) == pretune.predict(model, "bad")

    def test_other_columns(self, model: Model[ClassPrediction]) -> None:
        table = pd.DataFrame({"review": TEXTS})
        assert model.predict(table, columns={"text": "review"}) == model(TEXTS)
        with pytest.raises(DataError, match="the DataFrame: no column 'body'"):
            model.predict(table)

    def test_a_file(self, model: Model[ClassPrediction], tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("body\nbad\n", encoding="utf-8")
        assert model(path) == model(["bad"])

    def test_bytes_are_no_text(self, model: Model[ClassPrediction]) -> None:
        """One byte is no list of one text, the number of the byte."""
        with pytest.raises(DataError, match="row 2: expected a text, found a bytes"):
            model(["a", b"x"])

    def test_a_generator(self, model: Model[ClassPrediction]) -> None:
        assert model(text for text in TEXTS) == model(TEXTS)

    @pytest.mark.parametrize("texts", [None, 5, ["a", 5]])
    def test_the_tokenizer_reads_texts(self, model: Model[ClassPrediction], texts: Any) -> None:
        with pytest.raises(DataError, match="tokenizer: expected a text, found"):
            model.tokenizer(texts)

    def test_no_texts(self, model: Model[ClassPrediction]) -> None:
        with pytest.raises(DataError, match="expected texts, found an int"):
            model.predict(5)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="text 2: expected a text, found an int"):
            model.embed(["a", 5])
        for table in (pd.DataFrame({"text": ["a"]}), [{"text": "a"}], {"text": ["a"]}):
            with pytest.raises(DataError, match="with columns, where texts are expected"):
                model.embed(table)
            with pytest.raises(DataError, match="with columns, where texts are expected"):
                model.generate(table)


class TestAnswers:
    def test_are_typed_and_checked(self, model: Model[ClassPrediction], tmp_path: Path) -> None:
        folder = model.save(tmp_path / "saved")
        known = pretune.load(folder, answers=ClassPrediction)
        assert known.predict(TEXTS)[0].label == model.predict(TEXTS)[0].label
        with pytest.raises(CheckpointError, match="answers with ClassPrediction, where TagPredict"):
            pretune.load(folder, answers=TagPrediction)
        with pytest.raises(CheckpointError, match="has no task, where ClassPrediction"):
            pretune.load(folder, bare=True, answers=ClassPrediction)
        with pytest.raises(RunError, match="exists already"):
            model.save(folder)

    def test_a_kind_of_answers_is_a_class(self, model: Model[ClassPrediction]) -> None:
        with pytest.raises(CheckpointError, match="expected a class of answers, found a str"):
            model.answering("ClassPrediction")  # type: ignore[arg-type]

    def test_after_pickling(self, model: Model[ClassPrediction]) -> None:
        again: Model[ClassPrediction] = pickle.loads(pickle.dumps(model))  # noqa: S301 - our own
        assert again(TEXTS) == model(TEXTS)
        assert again.family is model.family

    def test_probabilities_and_logits(self, model: Model[ClassPrediction]) -> None:
        logits = model.logits(TEXTS)
        expected = torch.softmax(torch.from_numpy(logits), -1).numpy()
        assert logits.shape == (3, len(model.labels))
        np.testing.assert_allclose(model.predict_proba(TEXTS), expected, atol=1e-6)
        assert model.predict_proba([]).shape == (0, 3)
        best = [model.labels[i] for i in expected.argmax(-1)]
        assert [answer.label for answer in model(TEXTS)] == best

    def test_probabilities_of_several_labels(self, tiny_folder: Path) -> None:
        task = Multilabel(MultilabelOptions(max_length=16), ["a", "b"])
        model = pretune.load(tiny_folder, task=task)
        expected = torch.sigmoid(torch.from_numpy(model.logits(TEXTS))).numpy()
        np.testing.assert_allclose(model.predict_proba(TEXTS), expected, atol=1e-6)

    def test_a_score_has_no_probabilities(self, tiny_folder: Path) -> None:
        model = pretune.load(tiny_folder, task=Regress(RegressOptions(max_length=16)))
        with pytest.raises(RunError, match="the task regress has no probabilities of labels"):
            model.predict_proba(TEXTS)

    def test_explanations_add_up(self, model: Model[ClassPrediction]) -> None:
        (own,) = model.explain("the good film")
        assert sum(own.attributions) == pytest.approx(own.value - own.baseline, abs=0.05)
        frame = model.explain(["good", "bad"]).to_dataframe()
        assert frame["text"].tolist() == [0, 0, 0, 1, 1, 1]

    def test_the_public_functions_ask_the_same_model(self, model: Model[ClassPrediction]) -> None:
        table = [{"body": "good", "label": "good"}, {"body": "bad", "label": "bad"}]
        evaluation = pretune.evaluate(model, table, device="cpu")
        assert evaluation.metrics == model.evaluate(pd.DataFrame(table)).metrics
        assert evaluation.to_dataframe()["count"].tolist() == [2]
        assert np.array_equal(pretune.embed(model, TEXTS[:2]), model.embed(TEXTS[:2]))

    def test_a_bundle_becomes_a_model(self, model: Model[ClassPrediction]) -> None:
        fields = (model.model, model.tokenizer, model.family, model.task)
        bundle = Bundle(*fields)
        assert pretune.predict(bundle, TEXTS) == model(TEXTS)
        assert Model.of(bundle).model is model.model

    def test_generation(self, model: Model[ClassPrediction]) -> None:
        with pytest.raises(PretuneError, match="generate has no option 'temprature'"):
            model.generate("x", temprature=1)


class TestShown:
    def test_one_line(self, model: Model[ClassPrediction]) -> None:
        shown = repr(model)
        assert shown.startswith("<Model ")
        assert "bert, task classify, 3 labels, 23,587 parameters in float32 on cpu" in shown
        assert "\n" not in shown
        assert repr(model.tokenizer).endswith(f"{model.tokenizer.vocab_size} tokens>")

    def test_html_is_escaped(self, model: Model[ClassPrediction]) -> None:
        html = model._repr_html_()
        assert "&lt;b&gt;so&lt;/b&gt;" in html
        assert "<b>" not in html
        answers = model(["<script>alert(1)</script>"])
        assert "<script>" not in answers._repr_html_()
        assert "&lt;script&gt;" in answers._repr_html_()
        assert "<script>" not in model.explain("<script>alert(1)</script>")._repr_html_()

    def test_a_frame_has_the_inputs_and_the_answers(self, model: Model[ClassPrediction]) -> None:
        answers = model(pd.DataFrame({"body": TEXTS, "label": ["x"] * 3, "id": [1, 2, 3]}))
        frame = answers.to_dataframe()
        assert {*frame.columns} == {"body", "label", "id", "predicted_label", "score"}
        assert frame["predicted_label"].tolist() == [answer.label for answer in answers]
        assert frame["body"].tolist() == TEXTS

    def test_charts(self, model: Model[ClassPrediction], monkeypatch: Any) -> None:
        bars = model("good").plot().axes[0].patches
        assert sorted(bar.get_width() for bar in bars) == sorted(model.predict_proba("good")[0])
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(PretuneError, match="needs the Python package matplotlib"):
            model("good").plot()


class TestTokenizer:
    def test_is_callable(self, model: Model[ClassPrediction]) -> None:
        tokenizer = model.tokenizer
        assert tokenizer("good film") == tokenizer.encode(["good film"])[0]
        assert tokenizer(["a", "b"], ["c", "d"]) == tokenizer.encode(["a", "b"], ["c", "d"])
        assert [tokenizer("a", "b", max_length=4)] == tokenizer.encode(["a"], ["b"], max_length=4)
        with pytest.raises(DataError, match="one text as their pairs"):
            tokenizer(["a", "b"], "c")  # type: ignore[call-overload]


def test_the_answers_of_predictor_are_the_same(model: Model[ClassPrediction]) -> None:
    predictor = Predictor(model, device="cpu")
    assert predictor.predict(predictor.records(TEXTS)) == model(TEXTS)
