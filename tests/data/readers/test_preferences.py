"""Every form of preference data becomes one: the prompt's messages, and texts of the replies."""

from __future__ import annotations

from typing import Any

import pytest

from pretune.data.readers.conversations import with_messages
from pretune.data.readers.preferences import label_of, with_preferences
from pretune.data.records import Records
from pretune.errors import DataError

ASK = {"role": "user", "content": "Hi?"}
SAY = {"role": "assistant", "content": "Yes"}
PAIR = ["chosen", "rejected"]


def records(*rows: dict[str, Any]) -> Records:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    return Records(rows, "p.jsonl", range(1, len(rows) + 1), columns)


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Hi?"}, [ASK]),
        ({"prompt": [ASK]}, [ASK]),
        ({"prompt": "Hi?", "system": "Be."}, [{"role": "system", "content": "Be."}, ASK]),
        ({"prompt": "Hi?", "history": [ASK, SAY]}, [ASK, SAY, ASK]),
        ({"prompt": "Hi?", "history": [["Hi?", "Yes"]]}, [ASK, SAY, ASK]),
        ({"prompt": "Hi?", "history": []}, [ASK]),
        ({"instruction": "Hi?", "input": ""}, [ASK]),
        ({"conversations": [{"from": "human", "value": "Hi?"}]}, [ASK]),
        ({"messages": [ASK, SAY, ASK]}, [ASK, SAY, ASK]),
    ],
)
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("good", "bad"),
        (reply("good"), reply("bad")),
        ([reply("good")], [reply("bad")]),
        ({"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}),
    ],
)
def test_every_form_of_prompt_and_reply(
    row: dict[str, Any], messages: list[Any], chosen: Any, rejected: Any
) -> None:
    (read,) = with_preferences(records({**row, "chosen": chosen, "rejected": rejected}), PAIR).rows
    assert read == {"messages": messages, "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize("completion", ["", "Once.", None])
def test_a_completion_beside_a_pair_is_no_part_of_the_prompt(completion: str | None) -> None:
    row = {"prompt": "Hi?", "completion": completion, "chosen": "good", "rejected": "bad"}
    read = with_preferences(records(row), PAIR)
    expected = {"messages": [ASK], "chosen": "good", "rejected": "bad", "completion": completion}
    assert read.rows == [expected]
    assert {*read.columns} == {*expected}


@pytest.mark.parametrize(
    ("chosen", "rejected", "messages", "replies"),
    [
        (  # Anthropic's dialogues in one text
            "\n\nHuman: Hi?\n\nAssistant: Yes\n\nHuman: Hi?\n\nAssistant: good",
            "\n\nHuman: Hi?\n\nAssistant: Yes\n\nHuman: Hi?\n\nAssistant: gone",
            [ASK, SAY, ASK],
            ("good", "gone"),
        ),
        ("Hi? The one", "Hi? There", [ASK], ("The one", "There")),  # whole words stay with replies
        ([ASK, reply("a")], [ASK, reply("b")], [ASK], ("a", "b")),
        ([ASK, SAY, ASK, reply("a")], [ASK, SAY, ASK, reply("b")], [ASK, SAY, ASK], ("a", "b")),
        ([ASK, reply("a")], [ASK, reply("a")], [ASK], ("a", "a")),  # equal: passed over later
    ],
)
def test_the_common_beginning_is_the_prompt(
    chosen: Any, rejected: Any, messages: list[Any], replies: tuple[str, str]
) -> None:
    (read,) = with_preferences(records({"chosen": chosen, "rejected": rejected}), PAIR).rows
    assert (read["messages"], (read["chosen"], read["rejected"])) == (messages, replies)


def test_other_columns_stay_and_lines_too() -> None:
    both = records(
        {"prompt": "Hi?", "chosen": "a", "rejected": "b", "margin": 1},
        {"prompt": "Hi?", "chosen": None, "rejected": "b", "margin": 2},
    )
    read = with_preferences(both, PAIR)
    assert [row["margin"] for row in read.rows] == [1, 2]
    assert read.where(1) == "p.jsonl, line 2"
    assert read.rows[1]["chosen"] == "", "missing replies are passed over where they are learned"


@pytest.mark.parametrize("prompt", ["", " ", None, [], [{"role": "user", "content": None}]])
def test_an_empty_prompt_is_left_out_and_told(prompt: Any) -> None:
    given = [{"prompt": own, "chosen": "a", "rejected": "b"} for own in ("Hi?", prompt, "Hm?")]
    read = with_preferences(records(*given), PAIR)
    assert (list(read.lines or ()), [row["messages"][0]["content"] for row in read.rows]) == (
        [1, 3],
        ["Hi?", "Hm?"],
    )
    (note,) = read.notes
    told = "1 of 3 records left out for an empty message; the first: p.jsonl, line 2"
    assert note.startswith(told)
    if not isinstance(prompt, list):
        assert "item" not in note
    kept = with_preferences(records(*given), PAIR, keep_empty=True)
    assert [len(row["messages"]) for row in kept.rows] == [1, 0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": "yes", "rejected": "no"}, "line 1: 'chosen' and 'rejected' have no common"),
        ({"prompt": "Hi?", "chosen": True, "rejected": "a"}, "line 1, column 'chosen': expected a"),
        ({"prompt": [ASK, SAY], "chosen": "a", "rejected": "b"}, "line 1: the prompt ends with"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "line 1, column 'prompt'.*empty message"),
        ({"prompt": "Hi?", "chosen": "a"}, "no column 'rejected'"),
        (
            {"chosen": [ASK, SAY, ASK, SAY], "rejected": [ASK, SAY]},
            "line 1: .* differ before their last",
        ),
        (
            {"prompt": "x", "history": [3], "chosen": "a", "rejected": "b"},
            "line 1, column 'history', item 1",
        ),
    ],
)
def test_errors_name_the_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_preferences(records(row), PAIR)


@pytest.mark.parametrize(
    ("columns", "replies", "way_out"),
    [
        (["prompt", "chosen", "rejected"], ["completion"], "data.columns.completion=chosen"),
        (["instruction", "input", "output"], ["completion"], "data.columns.completion=output"),
        (["prompt", "completion", "label"], PAIR, "data.train=p.jsonl task.loss=kto"),
        (["prompt", "completion"], PAIR, "pretune train instruct data.train=p.jsonl"),
        (["instruction", "output"], PAIR, "pretune train instruct data.train=p.jsonl"),
        (["conversations"], PAIR, "pretune train instruct data.train=p.jsonl"),
        (["prompt", "choosen", "rejected"], PAIR, "Did you mean 'choosen'"),
        (["conversations"], ["completion"], "Say which one it is"),
    ],
)
def test_data_of_another_kind_are_told_what_they_are_for(
    columns: list[str], replies: list[str], way_out: str
) -> None:
    with pytest.raises(DataError) as error:
        with_preferences(records(dict.fromkeys(columns, "Hi?")), replies)
    assert error.value.message.startswith("p.jsonl: no column '")
    assert way_out in (error.value.hint or "")
    assert "mean 'prompt'" not in (error.value.hint or "")


def test_a_prompt_that_was_renamed_is_named() -> None:
    pairs = records({"prompt": "Hi?", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError) as error:
        with_preferences(pairs.mapped({"completion": "prompt"}, ()), ["completion"])
    assert "data.columns.completion=prompt says" in (error.value.hint or "")


def test_instruct_is_told_of_pairs() -> None:
    pairs = records({"prompt": "Hi?", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError) as error:
        with_messages(pairs, replies=True)
    assert "pretune train dpo data.train=p.jsonl" in (error.value.hint or "")
    with pytest.raises(DataError) as error:
        with_messages(records({"prompt": "Hi?", "answer": "a"}), replies=True)
    assert "mean 'prompt'" not in (error.value.hint or "")
    better = with_messages(pairs.mapped({"completion": "chosen"}, ()), replies=True)
    assert better.rows[0]["messages"] == [ASK, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(True, True), ("true", True), (1, True), (1.0, True), (False, False), ("False", False)],
)
def test_labels(value: Any, wanted: bool) -> None:
    assert label_of(records({"label": value}), 0) is wanted


@pytest.mark.parametrize("value", [None, "good", 2, ""])
def test_labels_that_say_nothing(value: Any) -> None:
    with pytest.raises(DataError, match="line 1, column 'label': expected true or false"):
        label_of(records({"label": value}), 0)


def test_records_of_different_forms_in_one_file() -> None:
    """Each is read by its own form, as where files were joined."""
    own = {"chosen": "good", "rejected": "bad"}
    rows = [
        {"prompt": "Hi?", **own},
        {"prompt": [ASK], **own},
        {"conversations": [{"from": "human", "value": "Hi?"}], "system": "Be.", **own},
        {"instruction": "Hi?", "input": "", **own},
        {"messages": [ASK], **own},
    ]
    read = with_preferences(records(*rows), PAIR)
    system = {"role": "system", "content": "Be."}
    expected = [[ASK], [ASK], [system, ASK], [ASK], [ASK]]
    assert [row["messages"] for row in read.rows] == expected
    assert all(set(row) == {"messages", *PAIR} for row in read.rows)
    assert {*read.columns} == {"messages", *PAIR}
    assert not read.notes


def test_a_form_that_every_record_has_leaves_the_others_alone() -> None:
    rows = [{"messages": [ASK], "prompt": "Hi?", "chosen": "good", "rejected": "bad"}]
    assert with_preferences(records(*rows), PAIR).rows[0]["prompt"] == "Hi?"


def test_numbers_are_texts() -> None:
    (read,) = with_preferences(records({"prompt": 7, "chosen": 4, "rejected": 0.5}), PAIR).rows
    asked = [{"role": "user", "content": "7"}]
    assert read == {"messages": asked, "chosen": "4", "rejected": "0.5"}


def test_a_label_that_is_no_label_is_shown() -> None:
    with pytest.raises(DataError, match=r"line 1.*expected true or false, found 'may\\x1bbe'"):
        label_of(records({"completion": "a", "label": "may\x1bbe"}), 0)
