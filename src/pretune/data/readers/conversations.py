"""Conversations with roles: `messages`, ShareGPT's `conversations`, Alpaca's three columns.

All three become the column `messages` of `{"role": ..., "content": ...}`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pretune.data.records import Records, is_missing
from pretune.errors import DataError, did_you_mean

MESSAGES, CONVERSATIONS = "messages", "conversations"
ALPACA = ("instruction", "input", "output")

#: From the names that data sets give to roles to ours.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


def with_messages(records: Records, *, replies: bool) -> Records:
    """Add the column `messages` to records in any of the three forms.

    Args:
        records: with `messages` (`{"role": ..., "content": ...}`), `conversations` (`{"from": ...,
            "value": ...}`), or `instruction`, perhaps `input`, and `output`. Records in none of
            these forms are returned as they are.
        replies: whether `output` must be there.

    Raises:
        DataError: a record has roles out of order, an unknown one or an empty message; names file,
            line and message.
    """
    column = next((name for name in (MESSAGES, CONVERSATIONS) if name in records.columns), None)
    if column is None and ALPACA[0] not in records.columns:
        return records
    # Each record by the form that the data set has; ShareGPT's column is replaced.
    rows = []
    for row in range(len(records)):
        if column is None:
            messages = _from_alpaca(records, row, replies=replies)
        else:
            messages = messages_of(records, row, column)
        kept = {name: value for name, value in records.rows[row].items() if name != CONVERSATIONS}
        rows.append({**kept, MESSAGES: messages})
    columns = tuple(dict.fromkeys([*records.columns, MESSAGES]))
    return replace(records, rows=rows, columns=columns)


def messages_of(records: Records, row: int, column: str = MESSAGES) -> list[dict[str, str]]:
    """The messages of a record (errors as in `with_messages`); a plain text is a user's message."""
    value = records.rows[row].get(column)
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    hint = 'A conversation is [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    messages: list[dict[str, str]] = []
    for item, message in enumerate(records.items(value, row, column, "messages", hint)):
        role, content = _message(message, records, row, column, item)
        _check_order(role, messages, records.where(row, column, item))
        messages.append({"role": role, "content": content})
    return messages


def _message(value: Any, records: Records, row: int, column: str, item: int) -> tuple[str, str]:
    where = records.where(row, column, item)
    names = (
        ("from", "value") if isinstance(value, dict) and "from" in value else ("role", "content")
    )
    if not isinstance(value, dict) or not all(isinstance(value.get(n), str) for n in names):
        raise DataError(
            f"{where}: expected a message with a {names[0]} and a {names[1]}, both texts",
            'For example {"role": "user", "content": "..."}.',
        )
    # The role under our name; empty messages teach nothing.
    given, content = value[names[0]], value[names[1]]
    role = ROLES.get(given)
    if role is None:
        raise DataError(f"{where}: the role '{given}' is not known", did_you_mean(given, ROLES))
    if not content.strip():
        what = "reply" if role == "assistant" else "message"
        raise DataError(f"{where}: an empty {what}", "Write it, or remove the record.")
    return role, records.checked(content, row, column, item)


def _check_order(role: str, before: list[dict[str, str]], where: str) -> None:
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


def _from_alpaca(records: Records, row: int, *, replies: bool) -> list[dict[str, str]]:
    """The messages of Alpaca's columns: the user asks with instruction and input, if any."""
    instruction, context, output = ALPACA
    names = [instruction, *([context] if _given(records, row, context) else [])]
    asked = "\n\n".join(records.text(row, name) for name in names)
    if not asked.strip():
        raise DataError(f"{records.where(row, instruction)}: an empty message", "Write it.")
    # The output may be missing where only answers are to be generated.
    messages = [{"role": "user", "content": asked}]
    if replies or _given(records, row, output):
        answer = records.text(row, output)
        if not answer.strip():
            raise DataError(
                f"{records.where(row, output)}: an empty reply", "Write it, or remove the record."
            )
        messages.append({"role": "assistant", "content": answer})
    return messages


def _given(records: Records, row: int, column: str) -> bool:
    return not is_missing(records.rows[row].get(column))
