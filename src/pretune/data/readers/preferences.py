"""Preferences: a prompt with a chosen and a rejected reply, or with one that is wanted or not.

Whatever the form, a record becomes `messages` (the conversation before the reply, the user's
message last) with `chosen` and `rejected`, or with `completion` and `label`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pretune.data.readers.conversations import (
    ALPACA,
    CONVERSATIONS,
    MESSAGES,
    messages_of,
    with_messages,
)
from pretune.data.records import Record, Records, is_missing
from pretune.errors import DataError, describe_value

PROMPT, HISTORY, SYSTEM = "prompt", "history", "system"
CHOSEN, REJECTED = "chosen", "rejected"
COMPLETION, LABEL = "completion", "label"

#: How the turns of a dialogue that is one text begin, as in Bai et al. 2022 (Anthropic's "HH").
_TURNS = re.compile(r"\n\n(Human|Assistant): ?")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def with_preferences(records: Records, *, replies: bool) -> Records:
    """Bring records into one form: `messages`, and the replies under their columns.

    The prompt is `prompt` (a text or messages), with `history` and `system` where there are such
    columns; or `messages`, `conversations`, or Alpaca's `instruction` and `input`. Where there is
    none of these, `chosen` and `rejected` are whole conversations, and their common beginning is
    the prompt.

    Args:
        records: as read from their file.
        replies: whether the replies are needed; without them only prompts are read.

    Raises:
        DataError: a record has no prompt, or its replies are no texts; names file, line, column.
    """
    paired = {CHOSEN, REJECTED} <= {*records.columns}
    if not paired and replies and COMPLETION not in records.columns:
        return records  # the missing columns are named where they are asked for
    # Prompts first, under the form that the data set has.
    names = [CHOSEN, REJECTED] if paired else [COMPLETION] if replies else []
    asked = {PROMPT, MESSAGES, CONVERSATIONS, ALPACA[0]} & {*records.columns}
    rows = []
    for row, record in enumerate(records.rows):
        values = {name: record.get(name) for name in names}
        if asked:
            prompt = _prompt(records, row)
            texts = {name: _reply(records, row, name) for name in names}
        else:
            prompt, texts = _common_beginning(records, row, values)
        rows.append({**record, MESSAGES: prompt, **texts})
    columns = tuple(dict.fromkeys([*records.columns, MESSAGES, *names]))
    whole = replace(records, rows=rows, columns=columns)
    for row in range(len(whole)):
        _check_prompt(whole, row)
    return whole


def _prompt(records: Records, row: int) -> list[Any]:
    """The messages before the reply, unchecked."""
    record = records.rows[row]
    if PROMPT not in record:
        # The reply, if the conversation has one, is what the record's own replies stand for.
        (whole,) = with_messages(records.take([row]), replies=False).rows
        messages: list[Any] = whole[MESSAGES]
        return messages[:-1] if messages[-1]["role"] == "assistant" else messages
    given = record[PROMPT]
    messages = [*_earlier(records, row)]
    if isinstance(given, list):
        return [*messages, *given]
    return [*messages, {"role": "user", "content": records.text(row, PROMPT)}]


def _earlier(records: Records, row: int) -> Iterator[Any]:
    """The system message and the turns in `history`: messages, or pairs of texts."""
    if not is_missing(records.rows[row].get(SYSTEM)):
        yield {"role": "system", "content": records.text(row, SYSTEM)}
    history = records.rows[row].get(HISTORY)
    for item, turn in enumerate(history if isinstance(history, list) else ()):
        if isinstance(turn, dict):
            yield turn
        elif isinstance(turn, list) and len(turn) == 2:
            yield from (
                {"role": role, "content": text}
                for role, text in zip(("user", "assistant"), turn, strict=True)
            )
        else:
            raise DataError(
                f"{records.where(row, HISTORY, item)}: expected a message or a pair of texts, "
                f"found {describe_value(turn)}",
                'For example {"role": "user", "content": "..."} or ["question", "answer"].',
            )


def _reply(records: Records, row: int, column: str) -> str:
    """A reply as a text; the last message where a conversation or a message is given."""
    value = records.rows[row].get(column)
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping):
        content = value.get("content", value.get("value"))
        if isinstance(content, str):
            return records.checked(content, row, column)
    if is_missing(value):
        return ""  # passed over, and counted, where it is learned from
    if isinstance(value, str):
        return records.checked(value, row, column)
    raise DataError(
        f"{records.where(row, column)}: expected a reply, found {describe_value(value)}",
        'A reply is a text, or a list with one message: [{"role": "assistant", "content": "..."}].',
    )


def _common_beginning(
    records: Records, row: int, values: Mapping[str, Any]
) -> tuple[list[Any], dict[str, str]]:
    """The prompt of whole conversations, and what is left of each: the reply."""
    chosen, rejected = values.get(CHOSEN), values.get(REJECTED)
    where = records.where(row)
    if isinstance(chosen, list) and isinstance(rejected, list):
        # Messages: as many as are equal, but the last of each is its reply.
        most_shared = min(len(chosen), len(rejected)) - 1
        shared = next((i for i in range(most_shared) if chosen[i] != rejected[i]), most_shared)
        if shared < 1 or any(len(own) != shared + 1 for own in (chosen, rejected)):
            raise DataError(
                f"{where}: the conversations in '{CHOSEN}' and '{REJECTED}' differ before their "
                "last messages",
                "Only the last reply may differ; or give the prompt in a column of its own.",
            )
        return chosen[:shared], {name: _reply(records, row, name) for name in values}
    # Texts: up to the last turn, or else to the last line or word, that they share.
    texts = {name: records.text(row, name) for name in values}
    begun = _shared(*texts.values())
    marks = [match for match in _TURNS.finditer(begun) if match[1] == "Assistant"]
    if marks:
        cut = marks[-1].end()
        return _turns(begun[: marks[-1].start()]), {n: t[cut:] for n, t in texts.items()}
    cut = max(begun.rfind(mark) + 1 for mark in ("\n", " "))
    if not begun[:cut].strip():
        raise DataError(
            f"{where}: '{CHOSEN}' and '{REJECTED}' have no common beginning to take for the prompt",
            f"Give the prompt in a column '{PROMPT}'.",
        )
    asked = [{"role": "user", "content": begun[:cut].strip()}]
    return asked, {name: text[cut:] for name, text in texts.items()}


def _shared(first: str, second: str) -> str:
    """The beginning that two texts share, character by character."""
    pairs = enumerate(zip(first, second, strict=False))
    length = next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
    return first[:length]


def _turns(text: str) -> list[Record]:
    """The messages of a dialogue in one text: `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    parts = _TURNS.split(f"\n\n{text.lstrip()}")
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return [{"role": _SPEAKERS[who], "content": said.strip()} for who, said in turns]


def _check_prompt(records: Records, row: int) -> None:
    """Bring a prompt's messages to their usual form in place, and check their order."""
    messages = messages_of(records, row)
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{records.where(row, MESSAGES)}: the prompt ends with a message of the "
            f"{messages[-1]['role']}",
            "A reply answers the user: the last message before it must be theirs.",
        )
    records.rows[row][MESSAGES] = messages


def label_of(records: Records, row: int) -> bool:
    """Whether the completion of a record is wanted.

    Raises:
        DataError: the label is neither true nor false.
    """
    value = records.rows[row].get(LABEL)
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0"):
        return True
    if word in ("false", "0", "0.0"):
        return False
    raise DataError(
        f"{records.where(row, LABEL)}: expected true or false, found {describe_value(value)}",
        "true: the completion is wanted; false: it is not.",
    )
