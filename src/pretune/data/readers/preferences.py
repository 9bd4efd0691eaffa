"""Preferences: a prompt with a chosen and a rejected reply, or with one that is wanted or not.

Whatever the form, a record becomes `messages` (the conversation before the reply, the user's
message last) with `chosen` and `rejected`, or with `completion` and `label`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretune.data.readers.conversations import (
    ALPACA,
    COMPLETION,
    CONVERSATIONS,
    FORMS,
    MESSAGES,
    PROMPT,
    with_messages,
)
from pretune.data.records import Record, Records, is_missing
from pretune.errors import DataError, describe_value
from pretune.text.terminal import in_line, names_in_line

#: Characters of a cell in an error.
SHOWN = 40
CHOSEN, REJECTED, LABEL = "chosen", "rejected", "label"

#: How the turns of a dialogue that is one text begin, as in Bai et al. 2022 (Anthropic's "HH").
_TURNS = re.compile(r"\n\n(Human|Assistant): ?")
#: Where the texts of a record's replies wait while its prompt is read.
_TEXTS = "texts of the replies"
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def with_preferences(
    records: Records, replies: Sequence[str], *, keep_empty: bool = False
) -> Records:
    """Make the column `messages`, which is the prompt, and texts of the replies.

    The prompt has one of the forms of `with_messages`, without a reply. Where there is no prompt,
    `chosen` and `rejected` are whole conversations, and their common beginning is the prompt.

    Args:
        records: as read from their file.
        replies: the columns with replies, such as `chosen` and `rejected`: texts, messages, or
            lists that end with one. A reply that is missing is an empty text.
        keep_empty: whether a record with an empty prompt keeps its place, with no messages; else
            it is left out, and counted in the notes.

    Raises:
        DataError: a column is missing, no record has a prompt, or a reply is no text; names file,
            line and column.
    """
    _check_replies(records, replies)
    if not any(form in records.columns for form in FORMS):
        records = _split(records, replies)
    texts = [{name: _reply(records, row, name) for name in replies} for row in range(len(records))]
    # The prompt by itself: a completion beside it would be taken for the end of the conversation.
    aside = [name for name in (COMPLETION,) if name in records.columns and name not in replies]
    asked = [name for name in records.columns if name not in (*replies, *aside)]
    rows: list[Record] = [
        {
            **{name: row.get(name) for name in asked},
            _TEXTS: {**{name: row.get(name) for name in aside}, **own},
        }
        for row, own in zip(records.rows, texts, strict=True)
    ]
    bare = replace(records, rows=rows, columns=tuple(asked))
    prompts = with_messages(bare, replies=False, keep_empty=keep_empty)
    for row, record in enumerate(prompts.rows):
        check_prompt(prompts, row, record[MESSAGES])
    whole = []
    for record in prompts.rows:
        waiting = record.pop(_TEXTS)
        whole.append({**record, **waiting})
    return replace(prompts, rows=whole, columns=(*prompts.columns, *aside, *replies))


def check_prompt(records: Records, row: int, messages: Sequence[Mapping[str, str]]) -> None:
    """Check that the messages of a record's prompt, if it has any, end with one of the user.

    Raises:
        DataError: they do not; names file and line.
    """
    if messages and messages[-1]["role"] != "user":
        raise DataError(
            f"{records.where(row)}: the prompt ends with a message of the {messages[-1]['role']}",
            "A reply answers the user: the last message before it must be theirs.",
        )


def _check_replies(records: Records, replies: Sequence[str]) -> None:
    """Raise a DataError if a column with replies is missing: what the data have may fit elsewhere.

    A name that is merely spelled like the missing one would lead astray.
    """
    missing = next((name for name in replies if name not in records.columns), None)
    if missing is None:
        return
    columns, hint = {*records.columns}, None
    if missing == COMPLETION and {CHOSEN, REJECTED} <= columns:
        hint = (
            f"These are pairs of replies: data.columns.{COMPLETION}={CHOSEN} takes the better ones "
            "(`pretune evaluate` compares both)."
        )
    elif missing == COMPLETION and ALPACA[2] in columns:
        hint = f"Are the replies in '{ALPACA[2]}'? data.columns.{COMPLETION}={ALPACA[2]}"
    elif {COMPLETION, LABEL} <= columns:
        hint = (
            f"These are single replies, wanted or not, as '{LABEL}' tells: dpo learns from them "
            f"with task.loss=kto (pretune train dpo data.train={records.origin} task.loss=kto)."
        )
    elif missing != COMPLETION and columns & {COMPLETION, ALPACA[2], CONVERSATIONS, MESSAGES}:
        hint = (
            "These are single replies, with none to compare them with: instruct learns from them "
            f"(pretune train instruct data.train={records.origin})."
        )
    if hint is None:
        records.mapped({}, replies)  # raises, and names the nearest column
    shown = names_in_line(records.columns)
    raise DataError(f"{records.origin}: no column '{missing}'; it has {shown}", hint)


def _reply(records: Records, row: int, column: str) -> str:
    """A reply as a text; where a message or a list is given, that of the (last) message."""
    value = records.rows[row].get(column)
    if is_missing(value):
        return ""  # passed over, and counted, where it is learned from
    if isinstance(value, list | tuple) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        value = value.get("content", value.get("value"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{records.where(row, column)}: expected a reply, found {describe_value(value)}",
            'A reply is a text, or a message: {"role": "assistant", "content": "..."}.',
        )
    return records.checked(value, row, column)


def _split(records: Records, replies: Sequence[str]) -> Records:
    """Divide whole conversations into the prompt, which is what they share, and the replies."""
    if len(replies) != 2:
        return records  # there is no prompt: with_messages says so
    rows = []
    for row, record in enumerate(records.rows):
        first, second = (record.get(name) for name in replies)
        if isinstance(first, list) and isinstance(second, list):
            prompt, own = _shared_messages(records, row, first, second)
        else:
            texts = [records.text(row, name) for name in replies]
            prompt, own = _shared_text(records, row, *texts)
        rows.append({**record, PROMPT: prompt, **dict(zip(replies, own, strict=True))})
    return replace(records, rows=rows, columns=(*records.columns, PROMPT))


def _shared_messages(
    records: Records, row: int, first: list[Any], second: list[Any]
) -> tuple[list[Any], list[Any]]:
    """The messages that come before the replies, and the replies."""
    if len(first) != len(second) or len(first) < 2 or first[:-1] != second[:-1]:
        raise DataError(
            f"{records.where(row)}: '{CHOSEN}' and '{REJECTED}' are conversations that differ "
            "before their last messages",
            f"Only the last reply may differ; or give the prompt in a column '{PROMPT}'.",
        )
    return first[:-1], [first[-1], second[-1]]


def _shared_text(
    records: Records, row: int, first: str, second: str
) -> tuple[list[Record], list[str]]:
    """The prompt in the beginning that two texts share, as messages, and the rest of each."""
    pairs = enumerate(zip(first, second, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    begun = first[:length]
    # Up to the last turn of the assistant, where turns are marked.
    marks = [match for match in _TURNS.finditer(begun) if match[1] == "Assistant"]
    if marks:
        parts = _TURNS.split(f"\n\n{begun[: marks[-1].start()].lstrip()}")
        turns = zip(parts[1::2], parts[2::2], strict=True)
        prompt = [{"role": _SPEAKERS[who], "content": text.strip()} for who, text in turns]
        return prompt, [text[marks[-1].end() :] for text in (first, second)]
    # Or else up to the last whole line or word.
    cut = max(begun.rfind(mark) + 1 for mark in ("\n", " "))
    if not begun[:cut].strip():
        raise DataError(
            f"{records.where(row)}: '{CHOSEN}' and '{REJECTED}' have no common beginning to take "
            "for the prompt",
            f"Give the prompt in a column '{PROMPT}'.",
        )
    asked = [{"role": "user", "content": begun[:cut].strip()}]
    return asked, [text[cut:] for text in (first, second)]


def is_wanted(label: Any) -> bool | None:
    """Read a label, whether a completion is wanted; None where it is neither true nor false."""
    word = str(label).strip().lower()
    if word in ("true", "1", "1.0"):
        return True
    return False if word in ("false", "0", "0.0") else None


def label_of(records: Records, row: int) -> bool:
    """Whether the completion of a record is wanted.

    Raises:
        DataError: the label is neither true nor false.
    """
    value = records.rows[row].get(LABEL)
    wanted = is_wanted(value)
    if wanted is not None:
        return wanted
    raise DataError(
        f"{records.where(row, LABEL)}: expected true or false, found "
        + (f"'{in_line(value[:SHOWN])}'" if isinstance(value, str) else describe_value(value)),
        "true: the completion is wanted; false: it is not.",
    )
