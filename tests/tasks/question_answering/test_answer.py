from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pretune
from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import FeatureSet
from pretune.data.readers.files import read
from pretune.errors import CheckpointError
from pretune.inference.predict import Predictor
from pretune.recipe.recipe import Recipe
from pretune.tasks.features import featurize
from pretune.tasks.question_answering.answer import (
    Answerer,
    AnswerMetrics,
    AnswerOptions,
    AnswerPrediction,
)
from pretune.tasks.question_answering.windows import WindowSpans
from pretune.training.data import read_features
from pretune.training.run import resume, train_recipe
from pretune.training.validation import evaluate_features
from tests.tasks.question_answering.test_answer_scores import slow_v2
from tests.tasks.questions import CONTEXT, long_context, question, records
from tests.training.groups import Together, result_of


def window(*spans: tuple[float, int, int], null: float = -10.0) -> WindowSpans:
    return WindowSpans(
        np.array([score for score, *_ in spans]),
        np.array([place for _, *place in spans], dtype=np.int64).reshape(-1, 2),
        null,
    )


def task(length: int = 32, *, threshold: float = 0.0, **options: Any) -> Answerer:
    return Answerer(AnswerOptions.of_length(length).model_copy(update=options), threshold)


@pytest.fixture
def bundle(tiny_folder: Path) -> Bundle:
    torch.manual_seed(0)
    return load(tiny_folder, task=task())


class TestCombine:
    def test_the_best_span_of_all_windows(self) -> None:
        parts = [window((2.0, 0, 3), (1.0, 4, 8)), window((3.0, 4, 8), null=1.0)]
        found = task().combine(parts, {"context": CONTEXT})
        weights = [math.exp(3), math.exp(2)]
        assert (found.answer, found.start, found.end) == ("good", 4, 8)
        assert found.score == pytest.approx(weights[0] / sum(weights))
        assert [span.answer for span in found.candidates] == ["good", "The"]
        assert found.no_answer is None
        assert set(found.to_dict()) == {"answer", "score", "start", "end", "candidates"}
        assert set(found.top(None).to_dict()) == {"answer", "score", "start", "end"}
        assert len(found.top(2).candidates) == 2

    @pytest.mark.parametrize(("threshold", "answer"), [(-1.9, "The"), (-2.1, "")])
    def test_none_where_it_scores_more_by_the_threshold(
        self, threshold: float, answer: str
    ) -> None:
        parts = [window((2.0, 0, 3), null=4.0), window((1.0, 4, 8), null=0.0)]
        found = task(no_answer=True, threshold=threshold).combine(parts, {"context": CONTEXT})
        assert found.answer == answer
        assert found.null_odds == pytest.approx(-2.0), "the lowest of all windows' counts"
        whole = math.exp(2) + math.exp(1) + math.exp(0)
        assert found.no_answer == pytest.approx(1 / whole)
        assert (found.start is None) == (answer == "")
        assert found.score == pytest.approx((1 if answer == "" else math.exp(2)) / whole)

    @pytest.mark.parametrize("no_answer", [True, False])
    def test_an_empty_passage_has_no_answer(self, no_answer: bool, tiny_folder: Path) -> None:
        bundle = load(tiny_folder, task=task(no_answer=no_answer))
        (found,) = pretune.predict(bundle, [("who", "")])
        assert isinstance(found, AnswerPrediction)
        assert (found.answer, found.start, found.end) == ("", None, None)
        json.dumps(found.to_dict(), allow_nan=False)

    def test_what_people_see(self) -> None:
        found = task().combine([window((2.0, 0, 3), (1.0, 4, 8))], {"context": CONTEXT})
        assert [text for text, _ in found.ranked()] == ["The  [0:3]", "good  [4:8]"]
        assert [text for text, _ in found.top(None).ranked()] == ["The  [0:3]"]
        silent = task(no_answer=True, threshold=-99.0).combine(
            [window((2.0, 0, 3))], {"context": CONTEXT}
        )
        assert silent.ranked()[0] == ("(no answer)", silent.no_answer)


class TestPredict:
    @pytest.mark.parametrize("batch_tokens", [1, 8192])
    def test_one_answer_a_record_in_order(self, bundle: Bundle, batch_tokens: int) -> None:
        rows = [
            {"question": f"what {i}", "context": long_context(20 + 37 * (i % 4))} for i in range(8)
        ]
        predictor = Predictor(bundle, batch_tokens=batch_tokens)
        together = predictor.predict(predictor.records(rows))
        assert len(together) == 8
        for row, found in zip(rows, together, strict=True):
            (alone,) = predictor.predict(predictor.records([row]))
            assert isinstance(found, AnswerPrediction)
            assert isinstance(alone, AnswerPrediction)
            assert found.answer == alone.answer == row["context"][found.start : found.end]
            assert found.score == pytest.approx(alone.score, abs=1e-5)

    def test_is_the_best_span_by_transformers_logits(self, bundle: Bundle, tmp_path: Path) -> None:
        """Each window by itself through transformers, every span of each compared."""
        from transformers import BertForQuestionAnswering

        save(bundle, tmp_path)
        theirs = BertForQuestionAnswering.from_pretrained(tmp_path).eval()
        data = records(question("good", long_context(60)))
        assert isinstance(bundle.task, Answerer)
        features = featurize(bundle.task, data, bundle.tokenizer, with_targets=False)
        assert len(features) > 3
        best: list[tuple[float, int, int]] = []
        for i in range(len(features)):
            batch = features.batch(np.array([i]))
            assert batch.segments is not None
            with torch.no_grad():
                out = theirs(batch.tokens[None], token_type_ids=batch.segments[None])
            low, high = (int(batch.targets[n]) for n in ("passage", "passage_end"))
            best += [
                (
                    float(out.start_logits[0, a] + out.end_logits[0, b]),
                    int(batch.targets["first_char"][a]),
                    int(batch.targets["end_char"][b]),
                )
                for a in range(low, high)
                for b in range(a, min(high, a + bundle.task.options.max_answer_length))
            ]
        score, first, end = max(best)
        (found,) = pretune.predict(bundle, [data.rows[0]])
        assert isinstance(found, AnswerPrediction)
        assert (found.start, found.end) == (first, end)
        wanted = sorted({(a, b): s for s, a, b in sorted(best)}.values())[-20:]
        whole = sum(math.exp(s - score) for s in wanted)
        assert found.score == pytest.approx(1 / whole, rel=1e-4)


def metrics_of(own: Answerer, rows: list[dict[str, Any]], parts: list[WindowSpans]) -> Any:
    """Metrics as if the model had given these windows, one a record."""
    empty = np.zeros(0)
    features = FeatureSet(empty, empty, None, {}, np.arange(len(rows)), rows=rows)
    found = AnswerMetrics(own, features)
    found._parts = dict(enumerate(parts))
    return found


CASES = st.lists(
    st.tuples(
        st.sampled_from(["", "good", "bad film", "The good"]),
        st.sampled_from([(4, 8), (0, 8), (9, 13), (35, 38)]),
        st.integers(-40, 40),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda case: case[2],
)


class TestMetrics:
    @given(CASES, st.integers(-20, 20))
    def test_are_those_of_squad_2(self, cases: Any, threshold: int) -> None:
        """Its script, written anew, on the same answers; to the last digit."""
        own = task(no_answer=True, threshold=threshold / 4)
        rows = [question(text) for text, *_ in cases]
        parts = [window((1.0, *place), null=1.0 + odds / 4) for _, place, odds in cases]
        found = metrics_of(own, rows, parts).result()
        raw, after = [], []
        for (text, place, odds), _ in zip(cases, rows, strict=True):
            scores = slow_v2([text] if text else [], CONTEXT[slice(*place)])
            raw.append(scores)
            silent = odds / 4 > threshold / 4
            after.append((float(not text), float(not text)) if silent else scores)
        total = len(cases)
        assert found["exact_match"] == 100.0 * sum(e for e, _ in after) / total
        assert found["f1"] == 100.0 * sum(f for _, f in after) / total
        for name, kind in (("HasAns", True), ("NoAns", False)):
            own_scores = [s for s, (t, *_) in zip(after, cases, strict=True) if bool(t) is kind]
            if not own_scores:
                assert f"{name}_f1" not in found
                continue
            count = len(own_scores)
            assert found[f"{name}_exact"] == 100.0 * sum(e for e, _ in own_scores) / count
            assert found[f"{name}_f1"] == 100.0 * sum(f for _, f in own_scores) / count
        for side, name in enumerate(("exact", "f1")):
            now = best = sum(not text for text, *_ in cases)
            at = 0.0
            for i in sorted(range(total), key=lambda i: cases[i][2]):
                now += raw[i][side] if cases[i][0] else -1  # every span has a text
                if now > best:
                    best, at = now, cases[i][2] / 4
            assert found[f"best_{name}"] == 100.0 * best / total
            assert found[f"best_{name}_thresh"] == at

    @given(CASES)
    def test_the_threshold_that_is_kept_gives_the_best_f1(self, cases: Any) -> None:
        own = task(no_answer=True)
        rows = [question(text) for text, *_ in cases]
        parts = [window((1.0, *place), null=1.0 + odds / 4) for _, place, odds in cases]
        found = metrics_of(own, rows, parts)
        own.calibrate(found)
        assert found.result()["f1"] == pytest.approx(found.result()["best_f1"], abs=1e-9)

    def test_chinese_answers_are_compared_by_characters(self) -> None:
        rows = [question("中国电影")]
        start = CONTEXT.index("中国")
        parts = [window((1.0, start, start + 2))]
        expected = {"auto": 100 * 2 / 3, "characters": 100 * 2 / 3, "words": 0.0}
        for match, f1 in expected.items():
            own = task(match=match)
            assert metrics_of(own, rows, parts).result()["f1"] == pytest.approx(f1)

    def test_names_are_known_beforehand(self) -> None:
        for no_answer in (True, False):
            names = task(no_answer=no_answer).metrics().result()
            assert {"exact_match", "f1"} <= set(names)
            assert ("HasAns_f1" in names) == ("best_f1" in names) == no_answer

    @pytest.mark.parametrize("shares", [1, 2, 3])
    def test_windows_may_be_anywhere(self, bundle: Bundle, shares: int) -> None:
        """The windows of a record in several batches and processes: as all in one."""
        own = bundle.task
        assert isinstance(own, Answerer)
        rows = [question("good", long_context(20 + 37 * i), number=str(i)) for i in range(4)]
        features = featurize(own, records(*rows), bundle.tokenizer, evaluation=True)
        assert len(features) > 8
        bundle.model.eval()
        everything = [own.metrics(features) for _ in range(shares)]
        for i in range(len(features)):
            batch = features.batch(np.array([i]))
            with torch.no_grad():
                everything[i % shares].update(own.forward(bundle.model, batch), batch)
        together = own.metrics(features)
        for one in everything:
            together.merge(pickle.loads(pickle.dumps(one)))  # noqa: S301 - as it goes between processes
        whole = evaluate_features(own, bundle.model, features)
        for name, value in together.result().items():
            assert whole.metrics[name] == value
        assert together.details() == whole.details == {"examples": 4}
        assert whole.count == len(features)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def toy_rows(count: int, *, empty: bool) -> list[dict[str, Any]]:
    """The answer is the word after `the`; in every third passage there is no such word."""
    rows = []
    for i in range(count):
        fill = ["film"] * (3 + i % 20)
        number = str(i % 10)
        if empty and i % 3 == 0:
            rows.append(question("", " ".join([*fill, "x" + number]), number=str(i)))
            continue
        fill[i % len(fill) : i % len(fill)] = ["the", number + "x"]
        rows.append(question(number + "x", " ".join(fill), asked="what", number=str(i)))
    return rows


def toy_recipe(folder: Path, model: Path, *, no_answer: bool) -> Recipe:
    data = written(folder / "qa.jsonl", toy_rows(60, empty=no_answer))
    values = {
        "task": {
            "name": "answer",
            "max_length": 24,
            "max_question_length": 4,
            "doc_stride": 6,
            "no_answer": no_answer,
        },
        "model": {"from": str(model)},
        "data": {"train": str(data), "validation": str(data)},
        "train": {"epochs": 8, "batch_size": 8, "learning_rate": 5e-3, "device": "cpu"},
        "output": str(folder / "run"),
    }
    return Recipe.of(values)


class TestTraining:
    @pytest.mark.parametrize("no_answer", [True, False])
    def test_learns_and_keeps_its_threshold(
        self, no_answer: bool, tiny_folder: Path, tmp_path: Path
    ) -> None:
        result = train_recipe(toy_recipe(tmp_path, tiny_folder, no_answer=no_answer), quiet=True)
        assert result.metrics["f1"] > 60  # never to answer gives a third, and to guess less
        again = pretune.evaluate(result.folder, tmp_path / "qa.jsonl", device="cpu")
        assert again.metrics == pytest.approx(result.metrics, abs=1e-4)
        bundle = load(result.folder)
        assert isinstance(bundle.task, Answerer)
        saved = json.loads((Path(result.folder) / "best" / "config.json").read_text("utf-8"))
        assert saved["architectures"] == ["BertForQuestionAnswering"]
        if not no_answer:
            assert bundle.task.threshold == 0.0
            assert "no_answer_threshold" not in saved
            return
        assert result.metrics["f1"] == pytest.approx(result.metrics["best_f1"])
        assert result.details["threshold"] == bundle.task.threshold
        assert saved["no_answer_threshold"] == bundle.task.threshold
        own = Answerer.from_config(saved)
        assert own is not None
        assert (own.threshold, own.options.no_answer) == (bundle.task.threshold, True)

    def test_a_resumed_run_is_the_run(self, tiny_folder: Path, tmp_path: Path) -> None:
        """With checkpoints between evaluations, which have the threshold of the last one."""
        recipe = toy_recipe(tmp_path, tiny_folder, no_answer=True).changed(
            {"train.save_every": 3, "train.eval_every": 5, "train.max_steps": 9, "train.keep": 9}
        )
        whole = train_recipe(recipe, quiet=True)
        states = {
            int(path.name.partition("-")[2]): json.loads(
                (path / "pretune.json").read_text("utf-8")
            )["state"]
            for path in (tmp_path / "run" / "checkpoints").iterdir()
        }
        assert states[6] == states[5] != {"threshold": 0.0}
        (tmp_path / "run" / "result.json").unlink()
        shutil.rmtree(max((tmp_path / "run" / "checkpoints").iterdir()))
        again = resume(whole.folder, quiet=True)
        assert again.metrics == whole.metrics
        assert again.details == whole.details

    def test_in_two_processes(self, tiny_folder: Path, tmp_path: Path, together: Together) -> None:
        one = toy_recipe(tmp_path, tiny_folder, no_answer=True).changed({"train.max_steps": 4})
        result = train_recipe(one, quiet=True)
        two = one.changed({"output": str(tmp_path / "two")})
        together.train(2, two)
        found = result_of(two.output)
        assert found["details"]["examples"] == result.details["examples"] == 60
        assert found["metrics"] == pytest.approx(result.metrics, abs=1e-2)


def test_a_damaged_state_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    save(bundle, tmp_path)
    path = tmp_path / "pretune.json"
    for bad in ("NaN", '"x"', "null"):
        text = path.read_text("utf-8")
        path.write_text(text.replace('"threshold": 0.0', f'"threshold": {bad}'), "utf-8")
        with pytest.raises(CheckpointError, match="not readable"):
            load(tmp_path)
        path.write_text(text, "utf-8")


def test_a_checkpoint_of_transformers_is_known_by_its_class(tmp_path: Path) -> None:
    config = {"architectures": ["DistilBertForQuestionAnswering"], "max_position_embeddings": 512}
    own = Answerer.from_config(config)
    assert own is not None
    assert (own.options.max_length, own.options.doc_stride) == (384, 128)
    assert Answerer.from_config({"architectures": ["BertForMaskedLM"]}) is None


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_answers_with_a_checkpoint_of_transformers(
    family: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Without training, and with the same logits."""
    import transformers

    sizes = (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        if family == "DistilBert"
        else {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    )
    config = getattr(transformers, f"{family}Config")(
        vocab_size=200, max_position_embeddings=64, **sizes
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForQuestionAnswering")(config).eval()
    theirs.save_pretrained(tmp_path)
    shutil.copy(tiny_folder / "vocab.txt", tmp_path)
    bundle = load(tmp_path)
    assert isinstance(bundle.task, Answerer)
    assert bundle.task.options.max_length == 64
    data = records(question("good"))
    batch = featurize(bundle.task, data, bundle.tokenizer).batch(np.array([0]))
    assert batch.segments is not None
    more = {"token_type_ids": batch.segments[None]} if family == "Bert" else {}
    with torch.no_grad():
        ours = bundle.task.forward(bundle.model.eval(), batch)
        out = theirs(batch.tokens[None], **more)
    assert torch.allclose(ours[:, 0], out.start_logits[0], atol=1e-5)
    assert torch.allclose(ours[:, 1], out.end_logits[0], atol=1e-5)
    (found,) = pretune.predict(bundle, [("who", CONTEXT)])
    assert isinstance(found, AnswerPrediction)
    assert found.answer


class Said:
    """A reporter that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines += text.split("\n")

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[None]:
        yield None


def test_what_is_passed_over_is_said(bundle: Bundle) -> None:
    rows = [question("film", number=str(i)) for i in range(6)]
    for row in rows[1:]:
        row["answers"] = {"text": ["film"], "answer_start": [0]}
    said = Said()
    assert bundle.task is not None
    read_features("train", bundle.task, records(*rows), bundle, said)  # type: ignore[arg-type]
    assert said.lines[1:] == [
        "5 of 6 records were skipped:",
        *(
            f"  qa.jsonl, line {i + 1} (id {i}): at answer_start 0 there is 'The ', not 'film'"
            for i in (1, 2, 3)
        ),
        "  ...",
    ]


def test_public_data_is_learned_from(data_folder: Path, tiny_folder: Path) -> None:
    """Every answer of CMRC 2018 is found again by the tokens it is mapped to."""
    from pretune.tokenizers.load import load_tokenizer

    data = read(data_folder / "cmrc2018" / "trial.json").head(60)
    own = task(200)
    features = featurize(own, data, load_tokenizer(tiny_folder), evaluation=True)
    found: dict[int, str] = {}
    for i in range(len(features)):
        batch = features.batch(np.array([i]))
        first, last = int(batch.targets["start"]), int(batch.targets["end"])
        if last > 0:
            place = slice(batch.targets["first_char"][first], batch.targets["end_char"][last])
            found[int(features.records[i])] = data.rows[int(features.records[i])]["context"][place]
    assert len(found) == 60
    for record, text in found.items():
        right = data.rows[record]["answers"]["text"][0]
        assert right.strip() in text or text.strip() == right.strip()
