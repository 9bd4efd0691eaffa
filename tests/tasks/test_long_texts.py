"""Long texts: cut, read from both ends, or read in windows whose logits are averaged."""

from __future__ import annotations

import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretune.bundle.bundle import Bundle, load, save
from pretune.data.batch import PackedBatch
from pretune.data.records import Records
from pretune.evaluation.explain import explain_answer, explain_records, finished
from pretune.inference.predict import Predictor
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize
from pretune.tasks.long_texts import HEAD_SHARE, pooled_logits, window_starts
from pretune.tasks.regression.regress import Regress, RegressOptions
from pretune.tokenizers.load import load_tokenizer

LONG = "a b c d e f g h i j k l m"


def texts(*rows: str) -> Records:
    return Records([{"text": row} for row in rows], "a.csv", columns=("text",))


def windows(**options: Any) -> Classify:
    options = {"long": "windows", "max_length": 8, "overlap": 2, **options}
    return Classify(ClassifyOptions(**options), ["bad", "good"])


@pytest.fixture(scope="module")
def bundle(tiny_folder: Path) -> Bundle:
    torch.manual_seed(0)
    return load(tiny_folder, task=windows())


def shown(task: Classify, folder: Path, *rows: str) -> list[str]:
    tokenizer = load_tokenizer(folder)
    made = featurize(task, texts(*rows), tokenizer, with_targets=False)
    batches = [made.batch(np.array([i])) for i in range(len(made))]
    return [" ".join(tokenizer.tokens(batch.tokens.tolist())) for batch in batches]


class TestHeadAndTail:
    def test_keep_the_first_and_the_last_tokens(self, tiny_vocab_folder: Path) -> None:
        task = Classify(ClassifyOptions(max_length=10, long="head_tail"))
        # Of 8 tokens, 128 / 510 of them from the beginning: 2.
        assert shown(task, tiny_vocab_folder, LONG, "a b") == [
            "[CLS] a b h i j k l m [SEP]",
            "[CLS] a b [SEP]",
        ]

    def test_are_128_and_382_of_510(self) -> None:
        assert round(510 * HEAD_SHARE) == 128

    def test_of_both_texts_of_a_pair(self, tiny_vocab_folder: Path) -> None:
        encoded = load_tokenizer(tiny_vocab_folder).encode(
            [LONG], ["x y"], max_length=11, head=HEAD_SHARE
        )
        tokens = load_tokenizer(tiny_vocab_folder).tokens(encoded[0].ids)
        assert " ".join(tokens) == "[CLS] a b j k l m [SEP] x y [SEP]"
        assert encoded[0].truncated
        assert encoded[0].segments == [0] * 8 + [1] * 3

    @given(st.integers(0, 30), st.integers(0, 30), st.integers(3, 20), st.floats(0, 1))
    def test_keep_as_many_tokens_as_a_cut(
        self, tiny_vocab_folder: Path, first: int, second: int, length: int, head: float
    ) -> None:
        tokenizer = load_tokenizer(tiny_vocab_folder)
        pair = ["a " * first], ["b " * second]
        cut, kept = (tokenizer.encode(*pair, max_length=length, head=h)[0] for h in (1.0, head))
        assert sorted(cut.ids) == sorted(kept.ids)
        assert cut.segments == kept.segments


class TestWindows:
    @given(st.integers(0, 200), st.integers(1, 40), st.data())
    def test_cover_the_text_and_share_tokens(
        self, tokens: int, room: int, data: st.DataObject
    ) -> None:
        overlap = data.draw(st.integers(0, room // 2))
        starts = window_starts(tokens, room, overlap)
        ends = [min(start + room, tokens) for start in starts]
        assert starts[0] == 0
        assert ends[-1] == tokens
        assert all(low + room >= high + overlap for low, high in pairwise(starts))
        assert len({*starts}) == len(starts)
        assert tokens <= room or all(e - s == room for s, e in zip(starts, ends, strict=True))

    def test_each_have_the_special_tokens(self, tiny_vocab_folder: Path) -> None:
        assert shown(windows(), tiny_vocab_folder, LONG, "a b") == [
            "[CLS] a b c d e f [SEP] [CLS] e f g h i j [SEP] [CLS] h i j k l m [SEP]",
            "[CLS] a b [SEP]",
        ]

    @given(st.integers(0, 40), st.integers(1, 4))
    def test_know_which_token_of_the_text_each_is(
        self, tiny_vocab_folder: Path, words: int, most: int
    ) -> None:
        tokenizer = load_tokenizer(tiny_vocab_folder)
        text = " ".join(string.ascii_lowercase[i % 26] for i in range(words))
        reading = windows(max_windows=most).reading
        ((own,), (whole,)) = reading.read(tokenizer, [text]), tokenizer.encode([text])
        places = reading.places(tokenizer, text)
        assert (places is None) == (own.windows is None or len(own.windows) == 1)
        if places is not None:
            assert [whole.ids[place] for place in places] == own.ids
        # The longest text of which nothing is left out.
        assert own.truncated == (len(whole.ids) > reading.longest(tokenizer))

    def test_of_a_text_are_one_feature(self, tiny_vocab_folder: Path) -> None:
        made = featurize(
            windows(), texts(LONG, "a"), load_tokenizer(tiny_vocab_folder), with_targets=False
        )
        assert made.choices == ((8, 8, 8), (3,))
        assert made.batch(np.array([0, 1])).choices == (1, 3)

    def test_beyond_the_limit_are_cut_and_counted(self, tiny_vocab_folder: Path) -> None:
        task = windows(max_windows=2)
        made = featurize(task, texts(LONG), load_tokenizer(tiny_vocab_folder), with_targets=False)
        assert (made.choices, made.truncated) == (((8, 8),), 1)
        assert task.truncation_note == "had more than 2 windows of 8 tokens; the rest was cut"

    def test_are_averaged(self) -> None:
        logits = torch.arange(12.0).view(6, 2)
        pooled = pooled_logits(logits, (1, 3, 2))
        assert torch.equal(pooled, torch.tensor([[0.0, 1.0], [4.0, 5.0], [9.0, 10.0]]))

    def test_are_read_in_prediction_as_the_mean_of_each(self, bundle: Bundle) -> None:
        predictor = Predictor(bundle, device="cpu")
        (whole,) = predictor.logits(texts(LONG))
        parts = ["a b c d e f", "e f g h i j", "h i j k l m"]
        alone = torch.tensor(predictor.logits(texts(*parts)))
        assert torch.allclose(torch.tensor(whole), alone.mean(0), atol=1e-6)

    def test_give_gradients_of_the_mean(self, bundle: Bundle) -> None:
        task, model = bundle.task, bundle.model
        assert isinstance(task, Classify)
        made = featurize(task, texts(LONG, "a"), bundle.tokenizer, with_targets=False)
        batch = made.batch(np.array([0, 1]))
        both = PackedBatch(
            batch.tokens, batch.layout, batch.positions, batch.segments,
            {"label": torch.tensor([0, 1])}, batch.index, batch.choices,
        )  # fmt: skip
        loss = task.loss(task.forward(model, both), both)
        # The sequences by themselves, shortest first, and the mean by hand.
        logits = model(both)
        by_hand = torch.stack([logits[0], logits[1:].mean(0)])
        expected = torch.nn.functional.cross_entropy(by_hand, torch.tensor([0, 1]), reduction="sum")
        assert (loss.count, both.num_sequences) == (2, 4)
        assert torch.allclose(loss.sum, expected)
        assert torch.allclose(task.terms(both), torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]))

    def test_are_explained_together(self, bundle: Bundle) -> None:
        part = Predictor(bundle, device="cpu").tokenize(texts("a", LONG))
        _, told = finished(explain_records(bundle, part))
        assert " ".join(told.tokens) == f"[CLS] {LONG} [SEP]"
        # A token that two windows share has what it does in both.
        assert part.features is not None
        each = finished(explain_answer(bundle, part.features, 1))
        assert len(each.tokens) == 24
        assert sum(told.attributions) == pytest.approx(sum(each.attributions), rel=1e-4)
        assert sum(told.attributions) == pytest.approx(told.value - told.baseline, abs=0.05)

    def test_are_remembered_by_the_model(self, bundle: Bundle, tmp_path: Path) -> None:
        save(bundle, tmp_path)
        again = load(tmp_path)
        assert again.task is not None
        assert again.task.options == windows().options

    def test_give_a_score(self, tiny_folder: Path) -> None:
        torch.manual_seed(0)
        made = load(tiny_folder, task=Regress(RegressOptions(long="windows", max_length=8)))
        assert len(Predictor(made, device="cpu").predict(texts(LONG, ""))) == 2

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"pair": True}, "windows reads one text"),
            ({"overlap": 5}, "at most half of max_length"),
        ],
    )
    def test_that_make_no_sense_are_refused(self, options: dict[str, Any], why: str) -> None:
        with pytest.raises(ValidationError, match=why):
            windows(**options)


def test_files_of_other_models_are_as_they_were() -> None:
    written = ClassifyOptions().model_dump()
    assert not {"long", "overlap", "max_windows", "positive"} & {*written}
    assert ClassifyOptions().in_full().keys() == {*ClassifyOptions.model_fields}
    assert ClassifyOptions().in_full()["long"] == "cut"
    assert ClassifyOptions(long="head_tail", positive="x").model_dump().keys() - {*written} == {
        "long",
        "positive",
    }
