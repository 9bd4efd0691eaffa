from __future__ import annotations

import contextlib
import json
import math
import os
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pretune
from pretune.bundle.bundle import Bundle, load
from pretune.data.batch import FeatureSet
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import DataError, PretuneError, RunError
from pretune.inference.predict import (
    Predictor,
    decode_line,
    read_inputs,
    records_of,
    refuse_table,
    stream_lines,
    task_of,
)
from pretune.tasks.base import Prediction
from pretune.tasks.causal_lm.causal_lm import CausalLm, CausalLmOptions
from pretune.tasks.classification.classify import Classify, ClassifyOptions
from pretune.tasks.features import featurize, read_for
from pretune.training.data import examined_records
from tests.tasks.every_task import CASES


@pytest.fixture(scope="module")
def single(tiny_folder: Path) -> Bundle:
    torch.manual_seed(0)
    return load(tiny_folder, task=Classify(ClassifyOptions(max_length=16), ["bad", "good"]))


@pytest.fixture(scope="module")
def paired(tiny_folder: Path) -> Bundle:
    torch.manual_seed(0)
    options = ClassifyOptions(max_length=16, pair=True)
    return load(tiny_folder, task=Classify(options, ["bad", "good"]))


def texts(count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(["good", "bad", "x"], k=1 + i % 9)) for i in range(count)]


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_answers_are_those_of_each_text_alone_in_order(single: Bundle, batch_tokens: int) -> None:
    predictor = Predictor(single, batch_tokens=batch_tokens)
    many = predictor.predict(predictor.records(texts(23)))
    for text, answer in zip(texts(23), many, strict=True):
        (alone,) = predictor.predict(predictor.records([text]))
        assert answer.to_dict()["scores"] == pytest.approx(alone.to_dict()["scores"], abs=1e-6)


def test_no_dropout_in_prediction(tiny_folder: Path) -> None:
    torch.manual_seed(0)
    task = Classify(ClassifyOptions(max_length=16, dropout=0.9), ["bad", "good"])
    bundle = load(tiny_folder, task=task, dropout=0.5)
    one, two = (pretune.predict(bundle, ["good film"] * 3) for _ in range(2))
    assert one == two


class TestInputs:
    def test_texts_pairs_and_mappings(self, single: Bundle, paired: Bundle) -> None:
        mapped = [{"text": "good", "more": 1}]
        assert pretune.predict(single, mapped) == pretune.predict(single, ["good"])
        assert pretune.predict(single, "good") == pretune.predict(single, ["good"])
        named = [{"sentence1": "a", "sentence2": "b"}]
        assert pretune.predict(paired, named) == pretune.predict(paired, [("a", "b")])

    def test_none_give_no_answers(self, single: Bundle) -> None:
        assert pretune.predict(single, []) == []

    def test_an_empty_text_gets_an_answer(self, single: Bundle) -> None:
        assert len(pretune.predict(single, [""])) == 1

    @pytest.mark.parametrize("row", [("a", "b"), [], {"body": "a"}, [["x"]]])
    def test_of_another_form_name_the_row(self, single: Bundle, row: object) -> None:
        with pytest.raises(DataError, match=r"row 2|line 2"):
            pretune.predict(single, ["fine", row])

    def test_a_single_text_for_a_model_of_pairs(self, paired: Bundle) -> None:
        with pytest.raises(DataError, match="one text, but the model reads 2 texts"):
            pretune.predict(paired, ["alone"])


class TestFiles:
    def test_plain_text_has_one_input_a_line(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_text("good\n\nbad\n", encoding="utf-8")
        records = read_inputs(single, path)
        assert [records.text(i, "text") for i in range(3)] == ["good", "", "bad"]
        assert records.where(2) == f"{path}, line 3"

    def test_plain_text_of_pairs_has_tabs(self, paired: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_text("a\tb\nc\n", encoding="utf-8")
        with pytest.raises(DataError, match=r"line 2: one text, but the model reads 2"):
            read_inputs(paired, path)

    def test_a_blank_line_of_pairs_needs_no_tab(self, paired: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_text("a\tb\n\n \nc\td\n", encoding="utf-8")
        records = read_inputs(paired, path)
        assert records.rows[1:3] == [{"sentence1": "", "sentence2": ""}] * 2
        predictor = Predictor(paired)
        assert len(predictor.predict(records)) == 4
        assert predictor.blank == 2

    def test_tables_need_no_labels(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("body,id\ngood,1\n", encoding="utf-8")
        records = read_inputs(single, path, columns={"text": "body"})
        assert records.text(0, "text") == "good"

    def test_columns_are_those_of_the_training(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.csv"
        path.write_text("body,id\ngood,1\n", encoding="utf-8")
        known = Bundle(
            single.model,
            single.tokenizer,
            single.family,
            single.task,
            {"text": "body", "label": "x"},
        )
        assert read_inputs(known, path).text(0, "text") == "good"

    def test_an_empty_file_is_an_error(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "in.txt"
        path.write_text("\n \n", encoding="utf-8")
        with pytest.raises(DataError, match="no text in it"):
            read_inputs(single, path)


COMMAS = 'text,label\ngood,1\n"a, b",0\n'
WORDS_AND_TAGS = "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n"


class TestTablesByContent:
    """Files whose names do not tell that they are tables."""

    @pytest.mark.parametrize("name", ["a.txt", "a.dat", "a"])
    @pytest.mark.parametrize(
        "content",
        [
            COMMAS,
            "\ufeff" + COMMAS,
            COMMAS.replace("\n", "\r\n"),
            "label;text\n1;good\n0;a, b\n",
            "text\tlabel\ngood\t1\na, b\t0\n",
            ',id,text\n0,x,good\n1,y,"a, b"\n',  # the index that pandas writes
            "sep=|\ntext|id\ngood|1\na, b|2\n",
            '{"text": "good", "id": 1}\n{"text": "a, b", "id": 2}\n',
        ],
    )
    def test_the_first_line_names_the_inputs(
        self, single: Bundle, tmp_path: Path, name: str, content: str
    ) -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        records = read_inputs(single, tmp_path / name)
        assert [row["text"] for row in records.rows] == ["good", "a, b"]
        assert records.notes[0].startswith(f"{tmp_path / name}: read as ")

    @pytest.mark.parametrize(
        "content",
        [
            "Text, label\nit is so, really\n",  # not the names themselves
            "text, please\nhello\nhow are you\n",  # a sentence: no line after it divides so
            "text\nlabel\n",
            "a\tb\nc\td\n",
            '{"body": "x"}\n{"body": "y"}\n',
            "1\n2\n",
        ],
    )
    def test_plain_text_stays_lines(self, single: Bundle, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
        records = read_inputs(single, tmp_path / "a.txt")
        assert [row["text"] for row in records.rows] == content.splitlines()

    def test_a_name_alone_is_an_input_and_told(self, single: Bundle, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text\ngood\n", encoding="utf-8")
        (note,) = read_inputs(single, tmp_path / "a.txt").notes
        assert "line 1, 'text', is taken for an input" in note

    def test_names_of_the_training_data(self, single: Bundle, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("id\tbody\n1\tgood\n", encoding="utf-8")
        known = replace(single, columns={"text": "body"})
        assert [row["text"] for row in read_inputs(known, tmp_path / "a.txt").rows] == ["good"]
        given = read_inputs(single, tmp_path / "a.txt", columns={"text": "body"})
        assert [row["text"] for row in given.rows] == ["good"]

    def test_pairs_by_tabs_may_have_names(self, paired: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("sentence1\tsentence2\ngood\tbad\n", encoding="utf-8")
        assert len(read_inputs(paired, path)) == 1

    @pytest.mark.parametrize(
        "content", [WORDS_AND_TAGS, WORDS_AND_TAGS.replace("B-ORG", "NOUN").replace("O\n", "V\n")]
    )
    def test_words_with_tags(self, tiny_folder: Path, tmp_path: Path, content: str) -> None:
        tagger = CASES["tag"].bundle(tiny_folder, tmp_path)
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
        records = read_inputs(tagger, tmp_path / "a.txt")
        assert [row["tokens"] for row in records.rows] == [["EU", "rejects"], ["Peter"]]
        assert "read as CoNLL columns" in records.notes[0]
        (tmp_path / "b.txt").write_text("Peter is here\n\nEU rejects\n", encoding="utf-8")
        assert len(read_inputs(tagger, tmp_path / "b.txt")) == 3

    def test_a_stream_of_lines_is_no_table(self, single: Bundle, tmp_path: Path) -> None:
        refuse_table(single, [*enumerate(["text, please", "hello"], 1)])
        for content in (COMMAS, '{"text": "good"}'):
            with pytest.raises(
                DataError, match=r"(?s)line 1: begins .*--file /dev/stdin"
            ) as caught:
                refuse_table(single, [*enumerate(content.splitlines(), 1)])
            assert caught.value.message.startswith("input, line 1")


def worded(answer: Prediction) -> Any:
    """An answer without its figures, which depend a little on what stands beside it."""
    return json.loads(json.dumps(answer.to_dict()), parse_float=lambda _: None)


@pytest.mark.parametrize("name", sorted({*CASES} - {"choose"}))
@pytest.mark.parametrize("blank", ["", " \t　", None, math.nan])
def test_a_blank_record_keeps_its_place(
    name: str, blank: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """In every task whose records may be single texts."""
    predictor = Predictor(CASES[name].bundle(tiny_folder, tmp_path))
    task = predictor.task
    rows = [{column: row[column] for column in task.inputs} for row in CASES[name].rows(2)]
    if name.startswith("mask_lm"):
        rows = [{"text": "the [MASK] film"}, {"text": "[MASK] is bad"}]
    empty = dict.fromkeys(task.inputs, blank)
    answers = predictor.predict(predictor.records([empty, rows[0], empty, rows[1], empty]))
    assert predictor.blank == 3
    alone = predictor.predict(predictor.records(rows))
    assert [worded(answers[1]), worded(answers[3])] == [*map(worded, alone)]
    assert worded(answers[0]) == worded(answers[2]) == worded(answers[4])
    if answers[0].written is not None:
        assert answers[0].written == ""
    assert [*map(worded, predictor.predict(predictor.records([empty])))] == [worded(answers[0])]


@pytest.mark.parametrize("name", sorted({*CASES} - {"choose"}))
def test_a_record_without_text_is_neither_learned_nor_evaluated(
    name: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """It is skipped with its place, and the others keep theirs."""
    bundle = CASES[name].bundle(tiny_folder, tmp_path)
    task, rows = bundle.task, CASES[name].rows(4)
    assert task is not None
    empty = {**rows[0], **dict.fromkeys(task.inputs)}
    mixed = Records([rows[0], empty, rows[1], empty, *rows[2:]], "x.jsonl", range(1, 7))
    for evaluation in (False, True):
        without = featurize(task, Records(rows, "x.jsonl"), bundle.tokenizer, evaluation=evaluation)
        features = featurize(task, mixed, bundle.tokenizer, evaluation=evaluation)
        assert isinstance(features, FeatureSet)
        assert isinstance(without, FeatureSet)
        assert features.tokens.tolist() == without.tokens.tolist()
        texts = [item.record for item in features.skipped if item.why == "an empty text"]
        assert texts == [1, 3]
        assert {*features.records.tolist()} <= {0, 2, 4, 5}
    assert pretune.evaluate(bundle, mixed, quiet=True).metrics


def test_a_book_is_no_mistake_where_nothing_is_cut(single: Bundle, tmp_path: Path) -> None:
    text = "好" * 150_000
    (tmp_path / "in.txt").write_text(text, encoding="utf-8")
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": text}), encoding="utf-8")
    reader = CausalLm(CausalLmOptions())
    whole = replace(single, task=reader)
    found = [read_inputs(whole, tmp_path / name) for name in ("in.txt", "in.jsonl")]
    found += [
        read_for(reader, tmp_path / "in.txt", columns={}),
        examined_records("run", reader, str(tmp_path / "in.txt"), columns={}),
        records_of(reader, [text]),
    ]
    assert [records.text(0, "text") for records in found] == [text] * 5
    for name in ("in.txt", "in.jsonl"):
        with pytest.raises(DataError, match="150,000 characters"):
            read_inputs(single, tmp_path / name).text(0, "text")


def test_of_a_wrong_object_little_is_shown(single: Bundle) -> None:
    row = {"my secret " * 99: 1, "a\x1b[2J": 2, **{f"key {i}": i for i in range(5000)}}
    with pytest.raises(DataError, match="row 1: no 'text'; it has 'my secret my") as caught:
        records_of(task_of(single), [row])
    message = str(caught.value)
    assert len(message) < 600
    assert r"'a\x1b[2J'" in message
    assert "\x1b" not in message
    assert "(5,002)" in message


def test_a_bare_model_cannot_answer(tiny_folder: Path) -> None:
    with pytest.raises(RunError, match="not trained for a task"):
        pretune.predict(str(tiny_folder), ["a"])


def test_an_unknown_device_is_an_error(single: Bundle) -> None:
    with pytest.raises(RunError, match="device 'cuda:7'"):
        Predictor(single, device="cuda:7")


class TestStream:
    @staticmethod
    def lines(*chunks: bytes, encoding: str = "utf-8") -> list[tuple[int, str]]:
        reader, writer = os.pipe()

        def write() -> None:
            for chunk in chunks:
                with contextlib.suppress(BrokenPipeError):  # the reader had enough
                    os.write(writer, chunk)
            os.close(writer)

        thread = threading.Thread(target=write)
        thread.start()
        most = max(5, max((len(chunk) for chunk in chunks), default=0) // 100)
        try:
            return [
                line for found in stream_lines(reader, encoding, chunk_bytes=most) for line in found
            ]
        finally:
            os.close(reader)
            thread.join()

    def test_lines_are_whole_however_they_arrive(self) -> None:
        found = self.lines("好的\r\nab".encode()[:4], "好的\r\nab".encode()[4:], b"cdefgh\n\nend")
        assert found == [(1, "好的"), (2, "abcdefgh"), (3, ""), (4, "end")]

    def test_a_last_line_end_adds_no_line(self) -> None:
        assert self.lines(b"a\n", b"b\n") == [(1, "a"), (2, "b")]

    def test_nothing_is_no_lines(self) -> None:
        assert self.lines() == []

    def test_lines_come_before_the_pipe_is_closed(self) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"one\ntwo\nthr")
        assert next(iter(stream_lines(reader))) == [(1, "one"), (2, "two")]
        os.close(reader)
        os.close(writer)

    def test_broken_utf8_names_the_line(self) -> None:
        with pytest.raises(DataError, match="input, line 2: not valid UTF-8"):
            self.lines(b"ok\n", b"\xff\n")

    def test_a_mark_before_the_first_line_is_dropped(self) -> None:
        assert self.lines(b"\xef\xbb", b"\xbfa\n\xef\xbb\xbfb\n") == [(1, "a"), (2, "\ufeffb")]
        assert decode_line(b"\xef\xbb\xbfa\r", 1) == "a"
        assert decode_line(b"\xef\xbb\xbfa", 2) == "\ufeffa"

    @pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "gb18030"])
    def test_so_is_that_of_other_encodings(self, encoding: str) -> None:
        raw = "\ufeffa\n\ufeffb\n".encode(encoding)
        lines = self.lines(raw[:1], raw[1:3], raw[3:], encoding=encoding)
        assert lines == [(1, "a"), (2, "\ufeffb")]

    @pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-32-le", "latin-1"])
    def test_other_encodings(self, encoding: str) -> None:
        texts = ["ab\xe9", "好" * (encoding != "latin-1"), "x"]
        raw = "\r\n".join(texts).encode(encoding)
        assert self.lines(raw[:3], raw[3:], encoding=encoding) == list(enumerate(texts, 1))

    def test_bytes_of_another_encoding_name_the_line(self) -> None:
        with pytest.raises(DataError, match=r"input, line 3: not valid GB18030 \(byte 0xff\)"):
            self.lines("好\n好\n好".encode("gb18030") + b"\xff\n", encoding="gb18030")
        with pytest.raises(DataError, match="input: not valid UTF-16"):
            self.lines(b"ab\n\n", encoding="utf-16")
        with pytest.raises(DataError, match="no encoding is called 'utf-99'"):
            self.lines(b"ab\n", encoding="utf-99")

    def test_a_line_without_end_is_an_error(self) -> None:
        with pytest.raises(DataError, match="input, line 2: over 800,000 characters"):
            self.lines(b"ok\n", b"x" * 900_000)


class TestEvaluate:
    def test_counts_and_metrics(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "test.tsv"
        rows = [f"{text}\t{'good' if i % 3 else 'bad'}" for i, text in enumerate(texts(30))]
        path.write_text("\n".join(["text\tlabel", *rows]), encoding="utf-8")
        found = pretune.evaluate(single, path, batch_tokens=40)
        answers = pretune.predict(single, texts(30))
        right = [
            a.to_dict()["label"] == ("good" if i % 3 else "bad") for i, a in enumerate(answers)
        ]
        assert found.count == 30
        assert found.metrics["accuracy"] == pytest.approx(sum(right) / 30)

    def test_records_have_their_columns_named_as_a_file_has(
        self, single: Bundle, tmp_path: Path
    ) -> None:
        path = tmp_path / "test.tsv"
        lines = [f"{text}\tx\tgood" for text in texts(5)]
        path.write_text("\n".join(["body\ttext\tlabel", *lines]), encoding="utf-8")
        names = {"text": "body"}
        of_file = pretune.evaluate(single, path, columns=names)
        assert of_file.metrics != pretune.evaluate(single, path).metrics
        found = pretune.evaluate(single, read(path), columns=names)
        assert found.metrics == of_file.metrics
        with pytest.raises(DataError, match="no column 'bdy'"):
            pretune.evaluate(single, read(path), columns={"text": "bdy"})

    def test_a_long_text_that_is_no_mistake(self, single: Bundle) -> None:
        text = "good " * 30_000
        with pytest.raises(DataError, match="the limit is 100,000"):
            pretune.predict(single, text)
        assert len(pretune.predict(single, text, max_chars=150_000)) == 1

    def test_leaves_the_mode_as_it_was(self, single: Bundle, tmp_path: Path) -> None:
        path = tmp_path / "test.tsv"
        path.write_text("text\tlabel\na\tgood\n", encoding="utf-8")
        single.model.train()
        pretune.evaluate(single, path)
        assert single.model.training


def test_the_public_names_are_there_and_no_more() -> None:
    for name in pretune.__all__:
        assert getattr(pretune, name) is not None
    assert set(dir(pretune)) == set(pretune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pretune.nothing
    assert issubclass(PretuneError, Exception)


@pytest.mark.parametrize("name", ["classify", "multilabel", "regress"])
def test_logits_are_what_probabilities_are_made_of(
    tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    predictor = Predictor(CASES[name].bundle(tiny_folder, tmp_path), device="cpu")
    records = predictor.records(["the good film", "bad", ""])
    rows = torch.tensor(predictor.logits(records))
    made = {"classify": rows.softmax(-1), "multilabel": rows.sigmoid(), "regress": rows}[name]
    for answer, row in zip(predictor.predict(records), made.tolist(), strict=True):
        own = answer.to_dict()
        scores = [own["score"]] if name == "regress" else [*own["scores"].values()]
        assert scores == pytest.approx(row, abs=1e-5)


def test_other_tasks_have_no_logits_of_labels(tiny_folder: Path, tmp_path: Path) -> None:
    predictor = Predictor(CASES["tag"].bundle(tiny_folder, tmp_path), device="cpu")
    with pytest.raises(RunError, match="no scores of labels"):
        predictor.logits(predictor.records(["the film"]))
