from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForMultipleChoice

from pretune.bundle.bundle import load, save
from pretune.data.batch import Feature, FeatureSet, PackedBatch
from pretune.data.records import Records
from pretune.errors import CheckpointError, DataError
from pretune.tasks.features import featurize
from pretune.tasks.multiple_choice.choose import Choose, ChooseOptions, by_example
from pretune.tokenizers.load import load_tokenizer


def records(*rows: dict[str, Any]) -> Records:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Records(list(rows), "train.jsonl", list(range(1, len(rows) + 1)), columns)


def example(count: int, label: int = 0) -> dict[str, Any]:
    return {"context": "the film", "choices": ["good", "bad film", "un"][:count], "label": label}


class TestFeatures:
    def test_swag_has_a_stem_and_a_column_a_choice(self, tiny_vocab_folder: Path) -> None:
        tokenizer = load_tokenizer(tiny_vocab_folder)
        task = Choose(ChooseOptions(stem=True, choices=["ending0", "ending1"]))
        data = records(
            {"context": "good", "stem": "the", "ending0": "film", "ending1": "bad", "label": "1"}
        )
        assert list(task.inputs) == ["context", "stem", "ending0", "ending1"]
        (feature,) = task.features(data, range(1), tokenizer, with_targets=True)
        shown = " ".join(tokenizer.tokens(feature.tokens))
        assert shown == "[CLS] good [SEP] the film [SEP] [CLS] good [SEP] the bad [SEP]"
        assert list(feature.segments or ()) == [0, 0, 0, 1, 1, 1] * 2
        assert feature.choices == [6, 6]
        assert feature.targets == {"label": 1}

    def test_a_text_with_bars_is_a_list(self) -> None:
        data = records({"context": "a", "choices": "x|y|z"})
        assert Choose(ChooseOptions()).choices(data, 0) == ["x", "y", "z"]

    def test_the_last_columns_may_be_empty(self) -> None:
        task = Choose(ChooseOptions(choices=["a", "b", "c"]))
        for nothing in ("", None, float("nan")):
            assert task.choices(records({"a": "x", "b": "y", "c": nothing}), 0) == ["x", "y"]
        with pytest.raises(DataError, match=r"line 1: choice 1 is no text"):
            task.choices(records({"a": "x", "b": None, "c": "z"}), 0)

    @pytest.mark.parametrize("wrong", [None, "x", ["x"], ["x", ""], 7, []])
    def test_fewer_than_two_name_the_place(self, wrong: Any) -> None:
        with pytest.raises(DataError, match=r"train\.jsonl, line 1, column 'choices'"):
            Choose(ChooseOptions()).choices(records({"choices": wrong}), 0)

    @pytest.mark.parametrize("wrong", [-1, 2, "b", None, 0.5, True, float("nan"), "0_1"])
    def test_labels_are_numbers_of_choices(self, wrong: Any, tiny_vocab_folder: Path) -> None:
        data = records(example(2), {**example(2), "label": wrong})
        with pytest.raises(DataError, match=r"line 2, column 'label'.*0 to 1, found"):
            featurize(Choose(ChooseOptions()), data, load_tokenizer(tiny_vocab_folder))

    def test_long_ones_are_cut_each_by_itself_and_counted_once(
        self, tiny_vocab_folder: Path
    ) -> None:
        data = records({"context": "good " * 20, "choices": ["bad " * 20, "un"], "label": 0})
        task = Choose(ChooseOptions(max_length=11))
        found = featurize(task, data, load_tokenizer(tiny_vocab_folder))
        assert found.choices == ((11, 11),)
        assert found.truncated == 1


LENGTHS = st.lists(st.lists(st.integers(1, 4), min_size=2, max_size=4), min_size=1, max_size=8)


@given(LENGTHS, st.integers(1, 12), st.booleans())
def test_the_choices_of_an_example_stay_together(
    lengths: list[list[int]], size: int, sort: bool
) -> None:
    """In whatever batches, each has its own tokens, its positions from 0 and its target."""
    features = FeatureSet.of(
        Feature(
            tokens=[100 * i + 10 * c + t for c, n in enumerate(own) for t in range(n)],
            targets={"label": i},
            choices=own,
        )
        for i, own in enumerate(lengths)
    )
    for start in range(0, len(features), size):
        which = np.arange(start, min(start + size, len(features)))
        batch = features.batch(which, sort=sort)
        assert batch.choices is not None
        assert sorted(batch.index.tolist()) == which.tolist()
        assert batch.targets["label"].tolist() == batch.index.tolist()
        sequences = iter(batch.tokens.split(batch.layout.lengths))
        positions = iter(batch.positions.split(batch.layout.lengths))
        for i, count in zip(batch.index.tolist(), batch.choices, strict=True):
            assert count == len(lengths[i])
            for c in range(count):
                expected = [100 * i + 10 * c + t for t in range(lengths[i][c])]
                assert next(sequences).tolist() == expected
                assert next(positions).tolist() == list(range(len(expected)))


def test_other_choices_are_other_data() -> None:
    def of(*choices: list[int]) -> str:
        found = FeatureSet.of(Feature([1, 2, 3, 4], choices=own) for own in choices)
        return found.fingerprint()

    assert of([2, 2]) != of([1, 3])
    assert of([1, 3]) == of([1, 3])


def test_choices_have_to_be_the_tokens() -> None:
    with pytest.raises(ValueError, match="are not 3 tokens"):
        FeatureSet.of([Feature([1, 2, 3], choices=[1, 1])])
    with pytest.raises(ValueError, match="only some features"):
        FeatureSet.of([Feature([1, 2], choices=[1, 1]), Feature([1])])


def batch_of(counts: list[int], labels: list[int]) -> PackedBatch:
    features = [
        Feature([1] * count, None, {"label": label}, i, choices=[1] * count)
        for i, (count, label) in enumerate(zip(counts, labels, strict=True))
    ]
    return FeatureSet.of(features).batch(np.arange(len(counts)), sort=False)


def test_the_loss_is_a_softmax_over_the_choices_of_each_example() -> None:
    scores = torch.tensor([[1.0], [2.0], [0.5], [-1.0], [3.0]], requires_grad=True)
    batch = batch_of([2, 3], [1, 0])
    loss = Choose(ChooseOptions()).loss(scores, batch)
    values = np.exp([1.0, 2.0, 0.5, -1.0, 3.0])
    expected = -np.log(values[1] / values[:2].sum()) - np.log(values[2] / values[2:].sum())
    assert float(loss.sum.detach()) == pytest.approx(expected)
    assert loss.count == 2
    loss.sum.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    metrics = Choose(ChooseOptions()).metrics()
    metrics.update(scores, batch)
    assert metrics.result() == {"accuracy": 0.5}
    first, second = Choose(ChooseOptions()).predict(scores.detach(), batch)
    assert (first.choice, second.choice) == (1, 2)
    assert first.scores == pytest.approx((values[:2] / values[:2].sum()).tolist())
    assert len(second.scores) == 3


def test_transformers_gives_the_same_logits(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = load(tiny_folder, task=Choose(ChooseOptions(max_length=32)))
    assert bundle.report is not None
    assert bundle.report.missing == ("classifier.weight", "classifier.bias")
    save(bundle, tmp_path)
    assert isinstance(load(tmp_path).task, Choose)
    (tmp_path / "pretune.json").unlink()
    assert isinstance(load(tmp_path).task, Choose)
    theirs = BertForMultipleChoice.from_pretrained(tmp_path).eval()
    data = records(example(3), {**example(3), "context": "un the good, bad film"})
    features = featurize(Choose(ChooseOptions()), data, bundle.tokenizer)
    batch = features.batch(np.arange(2), sort=False)
    longest = max(batch.layout.lengths)
    ids, mask, segments = (torch.zeros(6, longest, dtype=torch.int64) for _ in range(3))
    assert batch.segments is not None
    for i, (start, length) in enumerate(
        zip(batch.layout.starts, batch.layout.lengths, strict=True)
    ):
        ids[i, :length] = batch.tokens[start : start + length]
        segments[i, :length] = batch.segments[start : start + length]
        mask[i, :length] = 1
    with torch.no_grad():
        expected = theirs(ids.view(2, 3, -1), mask.view(2, 3, -1), segments.view(2, 3, -1)).logits
        found = by_example(bundle.model.eval()(batch), batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_decoder_has_no_such_head(tmp_path: Path, tiny_vocab_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be used for the task choose"):
        load("gpt2-small", task=Choose(ChooseOptions()), tokenizer=tiny_vocab_folder)
