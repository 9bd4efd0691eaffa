from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretune.data.batch import FeatureSet
from pretune.errors import CheckpointError, DataError, RecipeError
from pretune.recipe.recipe import Recipe
from pretune.tasks.features import featurize
from pretune.tasks.question_answering.answer import Answerer, AnswerOptions
from pretune.tasks.question_answering.windows import Answer, Frame, right_answers, window_starts
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.train import train_tokenizer
from tests.tasks.questions import CONTEXT, long_context, question, records

WORDS = st.lists(
    st.sampled_from(
        ["good", "bad", "film", "The", "unable", "x9", "中国", "电影看", "é.", "🎬", "I'm"]
    ),
    min_size=1,
    max_size=60,
).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer(tiny_vocab_folder: Path) -> Tokenizer:
    return load_tokenizer(tiny_vocab_folder)


@pytest.fixture(scope="module")
def theirs(tiny_folder: Path) -> Any:
    from transformers import BertTokenizerFast

    return BertTokenizerFast(str(tiny_folder / "vocab.txt"))


def task(length: int = 32, **options: Any) -> Answerer:
    return Answerer(AnswerOptions.of_length(length).model_copy(update=options))


def windows(features: FeatureSet) -> list[dict[str, Any]]:
    found = []
    for i in range(len(features)):
        batch = features.batch(np.array([i]))
        found.append(
            {name: value.tolist() for name, value in batch.targets.items()}
            | {"tokens": batch.tokens.tolist(), "segments": batch.segments.tolist()}  # type: ignore[union-attr]
        )
    return found


@given(context=WORDS, asked=WORDS, length=st.integers(16, 40), overlap=st.integers(0, 6))
def test_windows_are_those_of_transformers(
    tokenizer: Tokenizer, theirs: Any, context: str, asked: str, length: int, overlap: int
) -> None:
    most = 5
    own = task(length, max_question_length=most, doc_stride=overlap)
    row = question("", context, asked=asked)
    found = windows(featurize(own, records(row), tokenizer, with_targets=False))
    cut = theirs.decode(theirs(asked, add_special_tokens=False)["input_ids"][:most])
    if len(theirs(cut, add_special_tokens=False)["input_ids"]) > most:
        return  # what was cut is no text that gives the same tokens
    expected = theirs(
        cut,
        context,
        truncation="only_second",
        max_length=length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [w["tokens"] for w in found] == expected["input_ids"]
    assert [w["segments"] for w in found] == expected["token_type_ids"]
    for i, window in enumerate(found):
        inside = [source == 1 for source in expected.sequence_ids(i)]
        offsets = expected["offset_mapping"][i]
        places = list(zip(window["first_char"], window["end_char"], strict=True))
        assert places == [o if x else (0, 0) for o, x in zip(offsets, inside, strict=True)]
        assert inside.index(True) == window["passage"][0]
        assert inside.index(True) + sum(inside) == window["passage_end"][0]


@given(st.integers(0, 500), st.integers(1, 60), st.data())
def test_windows_cover_a_passage_and_overlap(tokens: int, room: int, data: Any) -> None:
    overlap = data.draw(st.integers(0, room - 1))
    starts = window_starts(tokens, room, overlap)
    ends = [min(start + room, tokens) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == tokens
    for end, following in zip(ends[:-1], starts[1:], strict=True):
        assert end - following == overlap
    if len(starts) > 1:
        assert ends[-2] < tokens, "no window is within another"


@given(context=WORDS, data=st.data())
def test_the_tokens_of_an_answer_cover_it(tokenizer: Tokenizer, context: str, data: Any) -> None:
    """By the characters of the tokens, whatever they are; none beyond the answer."""
    words = [w for w in context.split() if tokenizer.encode_bare([w])[0].ids]
    word = data.draw(st.sampled_from(words))
    start = context.index(word)
    answer = {"text": [word], "answer_start": [start]}
    row = {**question("", context), "answers": answer}
    features = featurize(task(24), records(row), tokenizer, evaluation=True)
    found = windows(features)
    labelled = [w for w in found if w["start"] != [0]]
    assert labelled
    for window in found:
        first, last = window["start"][0], window["end"][0]
        if (first, last) == (0, 0):
            inside = [
                (a, b)
                for a, b in zip(window["first_char"], window["end_char"], strict=True)
                if b > start and a < start + len(word) and b > 0
            ]
            assert len(inside) < len(tokenizer.encode_bare([word])[0].ids), "only a part is here"
            continue
        assert window["passage"][0] <= first <= last < window["passage_end"][0]
        assert context[window["first_char"][first] : window["end_char"][last]] == word


def test_an_answer_within_words_gets_whole_tokens(tokenizer: Tokenizer) -> None:
    row = question("hin")
    (window,) = windows(featurize(task(64), records(row), tokenizer, evaluation=True))
    first, last = window["start"][0], window["end"][0]
    characters = CONTEXT[window["first_char"][first] : window["end_char"][last]]
    assert characters == "hin"  # the vocabulary spells China letter by letter


def test_training_has_no_characters_and_prediction_no_answers(tokenizer: Tokenizer) -> None:
    rows = records(question("film"))
    assert {"start", "end", "passage", "passage_end"} == set(
        featurize(task(64), rows, tokenizer).targets
    )
    assert {"passage", "passage_end", "first_char", "end_char"} == set(
        featurize(task(64), rows, tokenizer, with_targets=False).targets
    )


def test_each_passage_is_tokenized_once(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    original = Tokenizer.encode_bare

    def counted(self: Tokenizer, texts: Any, **how: Any) -> Any:
        asked.append(len(texts))
        return original(self, texts, **how)

    monkeypatch.setattr(Tokenizer, "encode_bare", counted)
    rows = records(*(question("film", number=str(i)) for i in range(5)), question("b", "a b"))
    features = featurize(task(64), rows, tokenizer)
    assert features.records.tolist() == list(range(6))
    assert asked == [2, 6]


class TestAnswers:
    def test_the_forms_they_come_in(self) -> None:
        expected = [Answer("a", 3), Answer("b", 0)]
        hub = {"text": ["a", "", "b"], "answer_start": [3, 1, 0]}
        listed = [{"text": "a", "answer_start": 3}, {"text": "b", "answer_start": 0}]
        assert right_answers({"answers": hub}, "x") == expected
        assert right_answers({"answers": listed}, "x") == expected
        assert right_answers({"answers": {"text": ["a"]}}, "x") == [Answer("a", -1)]
        assert right_answers({"answers": listed, "is_impossible": True}, "x") == []
        for none in (None, [], {"text": [], "answer_start": []}):
            assert right_answers({"answers": none}, "x") == []

    @pytest.mark.parametrize(
        "given",
        ["text", 3, ["a"], {"text": "a"}, {"text": ["a"], "answer_start": [1, 2]}, [{"text": 1}]],
    )
    def test_others_are_refused(self, given: Any, tokenizer: Tokenizer) -> None:
        row = {**question(""), "answers": given}
        with pytest.raises(DataError, match=r"qa.jsonl, line 1, column 'answers': these are no"):
            featurize(task(), records(row), tokenizer)

    def test_at_a_wrong_place_are_not_trained_on(self, tokenizer: Tokenizer) -> None:
        good, bad, lost = question("film"), question("film"), question("film")
        bad["answers"] = {"text": ["film"], "answer_start": [5]}
        lost["answers"] = {"text": ["film"], "answer_start": [10_000]}
        data = records(good, bad, lost)
        trained = featurize(task(64), data, tokenizer)
        assert trained.records.tolist() == [0]
        assert [item.record for item in trained.skipped] == [1, 2]
        assert trained.skipped[0].why == "at answer_start 5 there is 'ood ', not 'film'"
        measured = featurize(task(64), data, tokenizer, evaluation=True)
        assert measured.records.tolist() == [0, 1, 2]
        assert measured.targets["start"].tolist()[1:] == [-1, -1]
        assert measured.targets["end"].tolist()[1:] == [-1, -1]
        assert not measured.skipped

    def test_the_first_at_a_right_place_counts(self, tokenizer: Tokenizer) -> None:
        row, right = question("bad film"), question("bad film")
        places = [1, CONTEXT.index("bad film")]
        row["answers"] = {"text": ["film", "bad film"], "answer_start": places}
        (found,), (expected,) = (
            windows(featurize(task(64), records(r), tokenizer)) for r in (row, right)
        )
        assert found == expected

    def test_none_is_for_data_that_may_have_none(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match=r"line 2, column 'answers': the question has no"):
            featurize(task(), records(question("film"), question("")), tokenizer)
        (window,) = windows(featurize(task(64, no_answer=True), records(question("")), tokenizer))
        assert (window["start"], window["end"]) == ([0], [0])


def test_windows_without_the_answer_learn_the_first_token(tokenizer: Tokenizer) -> None:
    context = long_context(60)
    found = windows(
        featurize(task(24), records(question("good", context)), tokenizer, evaluation=True)
    )
    assert len(found) > 3
    has = [w["end_char"][w["start"][0]] > 0 for w in found]
    assert has[-1]
    assert not any(has[:-2])
    assert all(w["start"] == w["end"] == [0] for w, x in zip(found, has, strict=True) if not x)


def test_long_questions_are_cut_and_counted(tokenizer: Tokenizer) -> None:
    row = question("film", asked="film " * 50)
    features = featurize(task(64, max_question_length=4), records(row), tokenizer)
    assert features.truncated == len(features)
    assert set(features.targets["passage"]) == {1 + 4 + 1}


def test_an_empty_passage_is_one_window(tokenizer: Tokenizer) -> None:
    features = featurize(task(), records(question("", "")), tokenizer, with_targets=False)
    assert len(features) == 1
    assert features.targets["passage"] == features.targets["passage_end"]


def test_a_tokenizer_without_a_first_token_is_refused() -> None:
    plain = train_tokenizer(["a b c"] * 3, "char", vocab_size=20)
    with pytest.raises(CheckpointError, match=r"no \[CLS\] question"):
        Frame.of(plain)


class TestOptions:
    def test_the_overlap_must_leave_room(self) -> None:
        with pytest.raises(ValidationError, match="room for 61 tokens of the passage, so doc_stri"):
            AnswerOptions(max_length=128)
        with pytest.raises(ValidationError, match=r"room for 0 tokens .*max_question_length less"):
            AnswerOptions(max_length=64, doc_stride=0)
        values = {"task": {"name": "answer", "max_length": 128}, "data": {"train": "x.json"}}
        with pytest.raises(RecipeError, match="doc_stride must be less"):
            Recipe.of(values)

    def test_characters_are_for_questions_that_have_answers(self) -> None:
        with pytest.raises(ValidationError, match="CMRC"):
            AnswerOptions(no_answer=True, match="characters")

    @given(st.integers(8, 1000))
    def test_any_length_has_usual_ones(self, length: int) -> None:
        AnswerOptions.model_validate(AnswerOptions.of_length(length).model_dump())
