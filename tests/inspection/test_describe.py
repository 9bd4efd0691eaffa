from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretune.data.columns import as_text
from pretune.data.readers.files import read
from pretune.data.records import Records
from pretune.errors import DataError
from pretune.inspection import describe as describe_module
from pretune.inspection.describe import ALL, Description, Facts, describe
from pretune.inspection.describe_counts import Lengths, count_words, script_shares
from pretune.render.data_report import charts, description_page
from pretune.tasks.builtin import task_class
from pretune.tasks.classification.classify import ClassifyOptions
from pretune.tokenizers.load import load_tokenizer


def records_of(*rows: dict[str, object], origin: str = "a.jsonl") -> Records:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Records(rows, origin, range(1, len(rows) + 1), columns)


def facts_of(*rows: dict[str, object], **options: object) -> Facts:
    return describe([records_of(*rows)], **options).files[0]


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0, 1))
def test_lengths_are_those_of_the_sorted_list(values: list[int], share: float) -> None:
    lengths = Lengths(Counter(values))
    assert lengths.mean == pytest.approx(np.mean(values))
    assert lengths.quantile(share) == np.quantile(values, share, method="inverted_cdf")
    assert lengths.share_over(20) == pytest.approx(np.mean(np.array(values) > 20))


def test_a_quantile_is_reached_by_exactly_its_share() -> None:
    """Random shares hardly ever fall on the border of two values."""
    lengths = Lengths(Counter([9, 3, 7, 5]))
    shares = (0.0, 0.25, 0.26, 0.5, 0.51, 0.75, 1.0)
    assert [lengths.quantile(share) for share in shares] == [3, 3, 5, 5, 7, 7, 9]
    assert lengths.to_dict() == {"mean": 6.0, "median": 5, "p95": 9, "max": 9, "min": 3}
    assert Lengths().quantile(0.5) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("it's a film", 3), ("中国电影", 4), ("中国 film 好", 4), ("...", 0), ("Привет, мир", 2)],
)
def test_words(text: str, words: int) -> None:
    assert count_words(text) == words


def test_scripts() -> None:
    shares = script_shares(Counter("ab中国я한1!"))
    assert shares == pytest.approx(
        {"Latin": 2 / 6, "CJK": 2 / 6, "Cyrillic": 1 / 6, "Hangul": 1 / 6}
    )


def test_columns_labels_and_empty_texts() -> None:
    facts = facts_of(
        {"text": "one two", "label": "a", "n": 1},
        {"text": "three", "label": "b", "n": None},
        {"text": " ", "label": "a"},
    )
    assert facts.columns["n"] == {"whole number": 1, "missing": 2}
    assert facts.labels == {"a": 2, "b": 1}
    assert (facts.empty, facts.empty_places) == (1, ["line 3"])
    assert {name: lengths.mean for name, lengths in facts.words.items()} == {
        ALL: 1.5,
        "a": 2,
        "b": 1,
    }
    assert [item.words for item in facts.longest] == [2, 1]
    assert facts.shortest[0].where == "line 2"


def test_nan_is_missing(tmp_path: Path) -> None:
    """As pandas writes a column of numbers of which some are not there."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "one two", "label": 1.5}\n{"text": "one two", "label": NaN}\n'
        '{"text": NaN, "label": Infinity}\n{"text": "b", "label": [1, NaN]}\n'
    )
    facts = describe([read(path)]).files[0]
    assert facts.columns["text"] == {"text": 3, "missing": 1}
    assert facts.columns["label"] == {"number": 1, "missing": 2, "list": 1}
    assert facts.labels == {"1.5": 1, "1": 1}
    assert (facts.empty, facts.repeats.rows, facts.repeats.conflicts) == (1, 1, 0)


def test_repeats_and_their_labels() -> None:
    rows = [("good  film", 1), ("Good film", 0), ("bad", 0), ("bad", 0), ("bad", 0), ("x", 1)]
    facts = facts_of(*({"text": text, "label": label} for text, label in rows))
    repeats = facts.repeats
    assert (repeats.rows, repeats.groups, repeats.conflicts) == (3, 2, 1)
    assert repeats.examples[0] == "line 1: 2 times (1 1x, 0 1x)"


def labelled(*cells: object, column: str = "label") -> Facts:
    return facts_of(*({"text": "the same text", column: cell} for cell in cells))


@pytest.mark.parametrize(
    ("cells", "label"),
    [
        (["neg", " neg ", "neg\u200b", '"neg"'], "neg"),
        ([1, 1.0, "1", "1.0"], "1"),
        ([True, "true", "TRUE"], "True"),
    ],
)
def test_spellings_that_training_reads_as_one_label_are_one(
    cells: list[object], label: str
) -> None:
    facts = labelled(*cells)
    classify = task_class("classify")(ClassifyOptions())
    classify.fit(records_of(*({"text": "a", "label": cell} for cell in [*cells, "other"])))
    assert label in classify.labels
    assert facts.labels == {label: len(cells)}
    assert {*facts.words} == {ALL, label}
    assert facts.repeats.conflicts == 0


def test_a_label_is_the_same_in_each_file_however_it_is_spelled() -> None:
    files = [records_of({"text": "a", "label": cell}, origin=f"{cell}") for cell in (1, "1.0", 0)]
    first, second, third = describe(files).leaks
    assert (first.conflicts, second.conflicts, third.conflicts) == (0, 1, 1)
    assert [[*facts.labels] for facts in describe(files).files] == [["1"], ["1"], ["0"]]


def test_labels_that_look_alike_are_told() -> None:
    facts = labelled("neg", "Neg", " neg")
    assert (facts.labels, facts.repeats.conflicts) == ({"neg": 2, "Neg": 1}, 1)
    (remark,) = facts.label_remarks
    assert remark.startswith("these labels differ only in case")
    assert "these labels differ" in description_page(Description([facts], []))
    assert labelled(1, 1.0, "1.0").label_remarks == ["read as one label: '1' (2), '1.0' (1)"]


@pytest.mark.parametrize(
    ("cells", "labels", "conflicts"),
    [
        (["['a b', 'c']", "['c', 'a b']", "a b|c"], {"a b": 3, "c": 3}, 0),
        ([["a b", "c"], ("c", "a b")], {"a b": 2, "c": 2}, 0),
        ([["a"], []], {"a": 1}, 1),
        ([["a"], None], {"a": 1}, 0),
        ([[1, 0, 1], [1, 0, 1], [0, 0, 1]], {"0": 2, "2": 3}, 1),
        (["[1 0 1]", "[1 0 1]"], {"0": 2, "2": 2}, 0),
    ],
)
def test_sets_of_labels_are_read_as_multilabel_reads_them(
    cells: list[object], labels: dict[str, int], conflicts: int
) -> None:
    facts = labelled(*cells, column="labels")
    assert (facts.labels, facts.repeats.conflicts) == (labels, conflicts)


def test_what_is_odd_about_sets_of_labels_is_told() -> None:
    assert "task.separator=','" in labelled("a, b", "a", column="labels").label_remarks[0]
    assert "lists of 0 and 1" in labelled([1, 0], [1, 1], column="labels").label_remarks[0]
    refused = labelled([1, 0, 1], [1, 0], column="labels")
    assert refused.labels == {"1": 3, "0": 2}
    assert refused.label_remarks[0].startswith("multilabel refuses these labels: a.jsonl, line 2")
    assert labelled(0.5, 0.25, column="labels").labels == {"0.5": 1, "0.25": 1}


def test_leaks() -> None:
    long = "the quick brown fox jumps over the lazy dog and runs into the dark old wood"
    train = records_of({"text": "Same text", "label": 1}, {"text": long, "label": 1})
    rows = [("same  TEXT", 0), (long + " again", 1), ("something else altogether", 1)]
    dev = records_of(*({"text": t, "label": n} for t, n in rows), origin="b.jsonl")
    (leak,) = describe([train, dev], near=0.8).leaks
    assert (leak.rows, leak.conflicts, leak.near) == (1, 1, 1)
    assert leak.examples == ["line 1 = line 1", "line 2 ~ line 2"]
    assert describe([train, dev]).leaks[0].near is None


def test_no_label_is_not_another_label() -> None:
    rows = [("foo bar baz", "3"), ("foo bar baz", ""), ("foo bar baz", None), ("a b", "")]
    facts = facts_of(*({"text": text, "label": label} for text, label in rows))
    assert (facts.repeats.rows, facts.repeats.conflicts) == (2, 0)
    assert facts.repeats.examples == ["line 1: 3 times (3 1x)"]


@pytest.mark.parametrize(
    ("train", "test", "conflicts"),
    [
        ({"label": "1"}, {}, 0),  # a test set without labels
        ({}, {"label": "1"}, 0),
        ({"label": "1"}, {"label": ""}, 0),
        ({"label": "1"}, {"label": "0"}, 1),
    ],
)
def test_leaks_where_a_label_is_missing(
    train: dict[str, object], test: dict[str, object], conflicts: int
) -> None:
    first = records_of({"text": "same text", **train}, {"text": "Same text", "label": None})
    second = records_of({"text": "same text", **test}, {"text": "other"}, origin="b.jsonl")
    (leak,) = describe([first, second]).leaks
    assert (leak.rows, leak.conflicts) == (1, conflicts)


def test_tokens_and_what_is_unknown(tiny_vocab_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_vocab_folder)
    facts = facts_of(
        {"text": "the good film", "label": 1},
        {"text": "好😀坏 naïve 書", "label": 0},
        {"text": "書", "label": 0},
        tokenizer=tokenizer,
    )
    assert facts.tokens[ALL].counts[5] == 1  # with [CLS] and [SEP]
    assert facts.unknown is not None
    assert facts.unknown.pieces == {"書": 2, "😀": 1}
    assert facts.unknown_places["書"] == "line 2"
    assert facts.truncated() == dict.fromkeys((64, 128, 256, 512), 0.0)


def test_pairs_are_read_as_pairs(tiny_vocab_folder: Path) -> None:
    row = {"sentence1": "good", "sentence2": "bad film", "label": 1}
    facts = facts_of(row, tokenizer=load_tokenizer(tiny_vocab_folder))
    assert facts.text == ("sentence1", "sentence2")
    assert facts.tokens[ALL].counts == {6: 1}  # [CLS] good [SEP] bad film [SEP]


def test_records_of_words_with_tags() -> None:
    facts = facts_of({"tokens": ["I", "am", "Ann"], "ner_tags": ["O", "O", "B-PER"]})
    assert facts.labels == {"O": 2, "B-PER": 1}
    assert facts.words[ALL].mean == 3


def test_conversations_are_what_is_said_in_them(tiny_vocab_folder: Path) -> None:
    said = ["the good film", "a bad film"]
    talk = [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
    other = [{"from": "human", "value": "THE good film"}, {"from": "gpt", "value": said[1]}]
    tokenizer = load_tokenizer(tiny_vocab_folder)
    facts = facts_of({"messages": talk}, {"messages": other}, {"messages": []}, tokenizer=tokenizer)
    assert facts.text == ("messages",)
    assert facts.words[ALL].counts == {6: 2}
    assert facts.tokens[ALL].counts == {8: 2}
    assert facts.longest[0].text == "\n".join(said)
    assert (facts.repeats.rows, facts.empty) == (1, 1)


def test_a_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match="Did you mean 'text'"):
        facts_of({"text": "a"}, text=["txt"])


def test_the_page_is_whole_and_escaped() -> None:
    rows = [{"text": "<b>bold</b> & more", "label": label} for label in ("<i>", "b", "b")]
    found = describe([records_of(*rows), records_of(*rows, origin="b.jsonl")])
    text = description_page(found)
    assert "<b>" not in text
    assert "&lt;b&gt;bold" in text
    assert text.count("data:image/svg+xml;base64,") == sum(
        len(list(charts(facts))) for facts in found.files
    )


def test_emotion(data_folder: Path) -> None:
    import pandas

    path = data_folder / "emotion" / "validation.tsv"
    facts = describe([read(path)]).files[0]
    table = pandas.read_csv(path, sep="\t", quoting=3)
    assert facts.labels == table["label"].value_counts().to_dict()
    assert facts.repeats.rows == int(table["text"].duplicated().sum())


def test_a_text_that_many_rows_share_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small Parquet file may have thousands of rows with one text of megabytes."""
    looked: list[str] = []

    def counted(text: str) -> int:
        looked.append(text)
        return count_words(text)

    monkeypatch.setattr(describe_module, "count_words", counted)
    shared = "ein langer Text " * 100
    rows = [{"text": shared, "label": "a"} for _ in range(300)]
    facts = facts_of(*rows, {"text": "kurz", "label": "a"})
    assert facts.words[ALL].counts == {300: 300, 1: 1}
    assert facts.repeats.rows == 299
    # Of more than one chunk, and none of them a copy.
    assert looked == [shared, "kurz"]
    assert looked[0] is shared
    assert facts.scripts == {"Latin": 1.0}


@pytest.mark.parametrize("text", ["plain", "Äpfel 中国 😀"])
def test_a_text_is_not_copied(text: str) -> None:
    assert as_text(text) is text
    assert as_text(f"{text}\ud83d") == f"{text}?"


def test_long_texts_come_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe_module, "_CHUNK_CHARS", 10)
    done: list[int] = []
    describe([records_of(*[{"text": "w" * 8} for _ in range(5)])], progress=done.append)
    assert done == [2, 4, 5]


def test_rows_without_a_label_and_labels_that_look_alike() -> None:
    rows = [("a", "Spam"), ("b", "spam "), ("c", ""), ("d", None), ("e", "Spam"), ("f", "spam")]
    facts = facts_of(*({"body": f"a text {t}", "Category": label} for t, label in rows))
    assert (facts.label, facts.unlabelled) == ("Category", 2)
    assert facts.unlabelled_places == ["line 3", "line 4"]
    assert any("'Spam' (2), 'spam' (2)" in remark for remark in facts.label_remarks)


def test_lines_that_are_no_rows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,x\nb\nc,y\n", encoding="utf-8")
    (facts,) = describe([read(path, keep_bad=True)]).files
    assert (facts.rows, facts.unreadable) == (2, 1)
    assert "line 3: 1 fields" in facts.unreadable_places[0]
    assert "lines that are no rows" in description_page(Description([facts], []))
