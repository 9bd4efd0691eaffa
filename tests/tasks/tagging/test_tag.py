from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import pretune
from pretune.bundle.bundle import Bundle, load, save
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.evaluation.examine import examine
from pretune.tasks.features import featurize
from pretune.tasks.tagging.features import word_windows
from pretune.tasks.tagging.schemes import (
    LETTERS,
    EntitySpan,
    find_scheme,
    malformed,
    spans,
    write_tags,
)
from pretune.tasks.tagging.tag import Tagger, TagOptions, TagPrediction
from pretune.training.validation import evaluate_features

SCHEMES = list(LETTERS)
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


@st.composite
def entities(draw: st.DrawFn) -> tuple[list[EntitySpan], int]:
    length = draw(st.integers(0, 12))
    found, at = [], 0
    while at < length:
        at += draw(st.integers(0, 2))
        end = at + draw(st.integers(1, 4))
        if end <= length:
            found.append(EntitySpan(at, end, draw(st.sampled_from(["PER", "LOC", "X-Y.Z"]))))
        at = end
    return found, length


@pytest.mark.parametrize(("length", "overlap"), [(32, 8), (127, 31), (128, 64), (256, 64)])
def test_the_overlap_that_nobody_gives_fits_the_length(length: int, overlap: int) -> None:
    assert TagOptions(max_length=length).overlap == overlap
    with pytest.raises(ValueError, match=f"task.overlap={length // 2} is allowed"):
        TagOptions(max_length=length, overlap=length // 2 + 1)


@pytest.mark.parametrize("scheme", SCHEMES)
@given(given_=entities())
def test_every_scheme_gives_back_what_was_written(
    scheme: Any, given_: tuple[list[EntitySpan], int]
) -> None:
    found, length = given_
    tags = write_tags(found, length, scheme)
    assert len(tags) == length
    assert spans(tags) == found
    assert malformed(tags, scheme) is None


def slow_conlleval(tags: list[str]) -> list[tuple[int, int, str]]:
    """The rules of conlleval for the ends and beginnings of chunks, over B, I and O."""
    found, start = [], None
    last, last_type = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        pairs = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")}
        ended = (last, letter) in pairs or (last != "O" and last_type != kind)
        begins = (last, letter) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")}
        begins = begins or (letter != "O" and last_type != kind)
        if ended and start is not None:
            found.append((start, i, last_type))
            start = None
        if begins:
            start = i
        last, last_type = letter, kind
    return found


@given(st.lists(st.sampled_from(LABELS), max_size=9))
def test_malformed_tags_are_read_as_conlleval_reads_them(tags: list[str]) -> None:
    assert [(s.start, s.end, s.type) for s in spans(tags)] == slow_conlleval(tags)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["B-X", "I-X", "O"], "bio"),
        (["I-X", "I-X", "O", "I-X", "B-X"], "iob1"),
        (["B-X", "I-X", "O", "I-X"], "bio"),
        (["B-X", "E-X", "S-X"], "bioes"),
        (["B-X", "L-X", "U-X"], "bilou"),
        (["B-X", "M-X", "E-X"], "bmes"),
    ],
)
def test_the_scheme_of_data_is_found(tags: list[str], scheme: str) -> None:
    assert find_scheme([tags]) == scheme


@given(st.lists(st.integers(1, 6), max_size=40), st.integers(6, 12), st.integers(0, 6))
def test_each_word_counts_once_where_most_is_around_it(
    sizes: list[int], room: int, overlap: int
) -> None:
    found = word_windows(sizes, room, overlap)
    places = np.cumsum([0, *sizes])
    counted = [word for w in found for word in range(w.first, w.stop)]
    assert counted == list(range(len(sizes)))
    for window in found:
        assert places[window.end] - places[window.start] <= room
        assert window.start <= window.first <= window.stop <= window.end
        for word in range(window.first, window.stop):
            here, others = (
                [
                    min(places[word] - places[w.start], places[w.end] - places[word + 1])
                    for w in which
                    if w.start <= word < w.end
                ]
                for which in ([window], found)
            )
            assert here[0] == max(others)


def sentences(*tagged: str) -> Records:
    rows = [
        {
            "tokens": [pair.rpartition("/")[0] for pair in text.split()],
            "ner_tags": [pair.rpartition("/")[2] for pair in text.split()],
        }
        for text in tagged
    ]
    return Records(rows, "x.conll", range(1, len(rows) + 1), ("tokens", "ner_tags"))


SOME = sentences(
    "the/O film/B-LOC good/I-LOC bad/O",
    "un/B-PER able/O " + " ".join(f"film{i}/{'B' if i % 3 else 'I'}-LOC" for i in range(30)),
    "\u200b/B-PER \u200b/O ab/O",
)


def made(folder: Path, seed: int = 0, **options: Any) -> Bundle:
    """A model whose answers are of all kinds."""
    torch.manual_seed(seed)
    bundle = load(folder, task=tagger(**options))
    with torch.no_grad():
        bundle.model.get_parameter("classifier.weight").normal_()
        if options.get("crf"):
            bundle.model.get_parameter("crf.transitions").normal_()
    return bundle


def tagger(**options: Any) -> Tagger:
    return Tagger(TagOptions(**{"max_length": 24, "overlap": 8, **options}), LABELS)


def test_a_sentence_with_a_word_that_was_cut_is_counted_once(tiny_folder: Path) -> None:
    bundle = load(tiny_folder, task=tagger())
    assert bundle.task is not None
    words = " ".join(["the/O"] * 40)
    records = sentences(f"{words} {'!' * 60}/O {words}", words, f"{'!' * 60}/O")
    features = featurize(bundle.task, records, bundle.tokenizer, evaluation=True)
    assert len(features) > 5
    assert features.truncated == 2


@pytest.mark.parametrize("crf", [False, True])
class TestModel:
    def test_every_word_has_a_tag_and_counts_once(self, tiny_folder: Path, crf: bool) -> None:
        bundle = made(tiny_folder, 0, crf=crf)
        assert bundle.task is not None
        found = featurize(bundle.task, SOME, bundle.tokenizer, evaluation=True)
        assert len(found) > 4
        assert sum(found.targets["word"] >= 0) == sum(len(r["tokens"]) for r in SOME.rows)
        for row, answer in zip(SOME.rows, pretune.predict(bundle, SOME.rows), strict=True):
            assert isinstance(answer, TagPrediction)
            assert answer.tags is not None
            assert len(answer.tags) == len(row["tokens"])
            assert [(e.start, e.end, e.type) for e in answer.entities] == [
                (s.start, s.end, s.type) for s in spans(answer.tags)
            ]
            assert not crf or malformed(answer.tags, "bio") is None

    def test_figures_are_those_of_the_predictions(self, tiny_folder: Path, crf: bool) -> None:
        bundle = made(tiny_folder, 1, crf=crf)
        task = bundle.task
        assert task is not None
        features = featurize(task, SOME, bundle.tokenizer, evaluation=True)
        right = guessed = true = 0
        for row, answer in zip(SOME.rows, pretune.predict(bundle, SOME.rows), strict=True):
            assert isinstance(answer, TagPrediction)
            ours = {*slow_conlleval(list(answer.tags or ()))}
            theirs = {*slow_conlleval(row["ner_tags"])}
            right, guessed, true = (
                right + len(ours & theirs),
                guessed + len(ours),
                true + len(theirs),
            )
        for tokens in (1, 8192):  # windows of a sentence in one batch, or in several
            found = evaluate_features(task, bundle.model, features, batch_tokens=tokens)
            assert found.metrics["f1"] == pytest.approx(2 * right / (guessed + true))
            assert found.metrics["precision"] == pytest.approx(right / guessed)
            assert found.metrics["recall"] == pytest.approx(right / true)
            assert found.details["examples"] == 3

    def test_a_sentence_without_words_is_passed_over_but_answered(
        self, tiny_folder: Path, crf: bool
    ) -> None:
        bundle = made(tiny_folder, 1, crf=crf)
        task, some, none = bundle.task, SOME.rows[:2], {"tokens": [], "ner_tags": []}
        assert task is not None
        records = Records([some[0], none, some[1]], "x.jsonl", [1, 2, 3], SOME.columns)
        for evaluation in (False, True):
            found = featurize(task, records, bundle.tokenizer, evaluation=evaluation)
            assert [(one.record, one.why) for one in found.skipped] == [(1, "no words")]
            for index in range(len(found)):  # of no update nothing is counted
                batch = found.batch(np.array([index]))
                assert task.loss(task.forward(bundle.model, batch), batch).count > 0
        metrics = pretune.evaluate(bundle, records).metrics
        assert metrics == pretune.evaluate(bundle, Records(some, "x", None, SOME.columns)).metrics
        examined = examine(bundle, records, device="cpu")
        assert examined.metrics["f1"] == pytest.approx(metrics["f1"])
        for rows in ([none], [some[0], none]):
            answer = pretune.predict(bundle, rows)[-1]
            assert answer.to_dict() == {"entities": [], "tags": []}

    def test_processes_may_have_any_part_of_a_sentence(self, tiny_folder: Path, crf: bool) -> None:
        bundle = made(tiny_folder, 3, crf=crf)
        task = bundle.task
        assert task is not None
        features = featurize(task, SOME, bundle.tokenizer, evaluation=True)
        whole, *shares = (task.metrics(features) for _ in range(4))
        with torch.no_grad():
            for index in range(len(features)):
                batch = features.batch(np.array([index]))
                outputs = task.forward(bundle.model.eval(), batch)
                whole.update(outputs, batch)
                shares[index % 3].update(outputs, batch)
        shares[1].merge(shares[2])
        shares[0].merge(shares[1])
        assert shares[0].result() == whole.result()
        assert shares[0].details() == whole.details()
        assert whole.details()["examples"] == 3

    def test_goes_to_disk_and_back(self, tiny_folder: Path, tmp_path: Path, crf: bool) -> None:
        from transformers import AutoModelForTokenClassification

        bundle = made(tiny_folder, 2, crf=crf)
        save(bundle, tmp_path)
        expected = pretune.predict(bundle, SOME.rows)
        assert pretune.predict(load(tmp_path), SOME.rows) == expected
        theirs = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
        assert theirs.config.id2label == dict(enumerate(LABELS))
        ids = bundle.tokenizer.encode(["the good film"])[0].ids
        logits = theirs(torch.tensor([ids])).logits[0, [1, 2, 3]]
        assert bundle.task is not None
        one = Records([{"tokens": ["the", "good", "film"]}], "x", None, ("tokens",))
        batch = featurize(bundle.task, one, bundle.tokenizer, with_targets=False).batch(
            np.arange(1)
        )
        ours = bundle.task.forward(bundle.model.eval(), batch).logits
        assert torch.allclose(ours, logits, atol=1e-5)
        # Without our own file, by config.json alone.
        (tmp_path / "pretune.json").unlink()
        again = load(tmp_path)
        assert isinstance(again.task, Tagger)
        assert (again.task.labels, again.task.options.crf) == (LABELS, crf)
        assert again.task.options.scheme == "bio"
        short = [SOME.rows[0]]
        assert pretune.predict(again, short) == pretune.predict(bundle, short)


class TestData:
    def test_labels_scheme_and_characters(self) -> None:
        task = Tagger(TagOptions(scheme="bioes"))
        task.fit(sentences("好/I-X 坏/I-X 看/O"))
        assert task.labels == ["O", "B-X", "I-X", "E-X", "S-X"]
        assert (task.data_scheme, task.characters) == ("iob1", True)

    def test_numbers_have_names(self, tiny_folder: Path) -> None:
        rows = [{"tokens": ["a", "b"], "ner_tags": [1, 0]}]
        bare = Records(rows, "x.jsonl", [1], ("tokens", "ner_tags"))
        with pytest.raises(DataError, match=r"task\.labels"):
            Tagger(TagOptions()).fit(bare)
        task = Tagger(TagOptions(labels=["O", "B-X"]))
        task.fit(bare)
        assert task.labels == ["O", "B-X", "I-X"]
        named = Records(rows, "x", None, ("tokens", "ner_tags"), {"ner_tags": ["O", "B-Y"]})
        task = Tagger(TagOptions())
        task.fit(named)
        assert task.labels == ["O", "B-Y", "I-Y"]

    def test_what_is_malformed_is_repaired_and_said(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.conll"
        path.write_text("-DOCSTART- O\n\na O\n\nb B-PER\nc O\nd I-LOC\n", encoding="utf-8")
        records = read(path)
        task = tagger()
        found = featurize(task, records, load(tiny_folder).tokenizer, evaluation=True)
        assert [r.record for r in found.repaired] == [1]
        assert f"{path}, line 7: I-LOC after O" in found.repaired[0].why
        labels = found.targets["label"][found.targets["word"] >= 0]
        assert [LABELS[i] for i in labels] == ["O", "B-PER", "O", "B-LOC"]

    def test_unknown_types_are_named_with_their_line(
        self, tiny_folder: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.txt"
        path.write_text("a O\nb B-PRE\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.txt, line 2.*unknown type 'PRE'"):
            featurize(tagger(), read(path), load(tiny_folder).tokenizer)

    @pytest.mark.parametrize(
        ("text", "said"),
        [("a\tO\nb\n", "line 2: 1 columns"), ("a\tO\n\n\tO\n", "line 3")],
    )
    def test_broken_columns(self, tmp_path: Path, text: str, said: str) -> None:
        path = tmp_path / "a.conll"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=said):
            read(path)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_a_rate_of_the_field_is_a_positive_number(rate: float) -> None:
    with pytest.raises(ValidationError, match="crf_rate"):
        TagOptions(crf=True, crf_rate=rate)


def test_offsets_are_of_the_text(tiny_folder: Path) -> None:
    bundle = made(tiny_folder)
    text = "The good film, (un-able) in 中国."
    (found,) = pretune.predict(bundle, [text])
    assert isinstance(found, TagPrediction)
    assert found.tags is None
    assert found.entities
    for entity in found.entities:
        assert text[entity.start : entity.end] == entity.text
        assert 0 < entity.score <= 1
    json.dumps(found.to_dict())
