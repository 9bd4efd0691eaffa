"""Conversations with roles: `messages`, ShareGPT's `conversations`, Alpaca's three columns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretune.data.records import Records, is_missing
from pretune.errors import DataError, did_you_mean

MESSAGES, CONVERSATIONS = "messages", "conversations"
ALPACA = ("instruction", "input", "output")

#: Our name of a role, by what data sets call it.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


def with_messages(records: Records, *, replies: bool) -> Records:
    """The same records with a column `messages`, whichever of the three forms they have.

    Args:
        records: with `messages` (`{"role": ..., "content": ...}`), `conversations` (`{"from": ...,
            "value": ...}`), or `instruction`, maybe `input`, and `output`.
        replies: whether `output` is needed.

    Raises:
        DataError: a record has roles out of order, an unknown one or an empty message; names file,
            line and message.
    """
    column = next((name for name in (MESSAGES, CONVERSATIONS) if name in records.columns), None)
    if column is None and ALPACA[0] not in records.columns:
        return records
    rows = []
    for row in range(len(records)):
        if column is None:
            found = _of_columns(records, row, replies=replies)
        else:
            found = messages_of(records, row, column)
        kept = {name: value for name, value in records.rows[row].items() if name != CONVERSATIONS}
        rows.append({**kept, MESSAGES: found})
    columns = tuple(dict.fromkeys([*records.columns, MESSAGES]))
    return replace(records, rows=rows, columns=columns)


def messages_of(records: Records, row: int, column: str = MESSAGES) -> list[dict[str, str]]:
    """The messages of a record; a text is one of the user's.

    Raises:
        DataError: as `with_messages`.
    """
    value = records.rows[row].get(column)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    hint = 'A conversation is [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    found: list[dict[str, str]] = []
    for item, message in enumerate(records.items(value, row, column, "messages", hint)):
        role, content = _message(message, records, row, column, item)
        _check_order(role, found, records.where(row, column, item))
        found.append({"role": role, "content": content})
    return found


def _message(value: Any, records: Records, row: int, column: str, item: int) -> tuple[str, str]:
    where = records.where(row, column, item)
    names = ("from", "value") if isinstance(value, dict) and "from" in value else _NAMES
    if not isinstance(value, dict) or not all(isinstance(value.get(n), str) for n in names):
        raise DataError(
            f"{where}: expected a message with a {names[0]} and a {names[1]}, both texts",
            'For example {"role": "user", "content": "..."}.',
        )
    said, content = value[names[0]], value[names[1]]
    role = ROLES.get(said)
    if role is None:
        raise DataError(f"{where}: the role '{said}' is not known", did_you_mean(said, ROLES))
    if not content.strip():
        what = "reply" if role == "assistant" else "message"
        raise DataError(f"{where}: an empty {what}", "Write it, or remove the record.")
    return role, records.checked(content, row, column, item)


_NAMES = ("role", "content")


def _check_order(role: str, before: list[dict[str, str]], where: str) -> None:
    """Whether a role may come after some messages: maybe system, then user and assistant in turn.

    Raises:
        DataError: not this one.
    """
    last = before[-1]["role"] if before else None
    allowed = {None: ("system", "user"), "system": ("user",), "user": ("assistant",)}
    expected = allowed.get(last, ("user",))
    if role not in expected:
        after = "at the beginning" if last is None else f"after '{last}'"
        raise DataError(
            f"{where}: roles out of order: '{role}' {after}, expected {' or '.join(expected)}",
            "user and assistant take turns, the user first; before them system, once or not at "
            "all. Join messages of one role, or remove the record.",
        )


def _of_columns(records: Records, row: int, *, replies: bool) -> list[dict[str, str]]:
    """Alpaca's columns; the input, where there is one, follows the instruction."""
    names = [ALPACA[0], *([ALPACA[1]] if _given(records, row, ALPACA[1]) else [])]
    asked = "\n\n".join(records.text(row, name) for name in names)
    if not asked.strip():
        raise DataError(f"{records.where(row, ALPACA[0])}: an empty message", "Write it.")
    found = [{"role": "user", "content": asked}]
    if replies or _given(records, row, ALPACA[2]):
        answer = records.text(row, ALPACA[2])
        if not answer.strip():
            raise DataError(
                f"{records.where(row, ALPACA[2])}: an empty reply",
                "Write it, or remove the record.",
            )
        found.append({"role": "assistant", "content": answer})
    return found


def _given(records: Records, row: int, column: str) -> bool:
    """Whether there is something in a column; the number 0 is."""
    return not is_missing(records.rows[row].get(column))
