"""Conversations with roles: `messages`, ShareGPT's `conversations`, Alpaca's columns, prompts.

All become the column `messages` of `{"role": ..., "content": ...}`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pretune.data.records import Records, is_missing, similar_column
from pretune.errors import DataError, describe_value, did_you_mean
from pretune.text.terminal import names_in_line

MESSAGES, CONVERSATIONS = "messages", "conversations"
ALPACA = ("instruction", "input", "output")
PROMPT, COMPLETION = "prompt", "completion"
SYSTEM, HISTORY = "system", "history"

#: The columns of each form, by the column that tells it; of each record the first that it has is
#: read.
FORMS = {
    MESSAGES: (MESSAGES, SYSTEM),
    CONVERSATIONS: (CONVERSATIONS, SYSTEM),
    ALPACA[0]: (*ALPACA, SYSTEM, HISTORY),
    PROMPT: (PROMPT, COMPLETION, SYSTEM, HISTORY),
}

#: From the names that data sets give to roles to ours.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class _Turn:
    """A message, and where it stands in its record."""

    role: str
    content: str
    column: str
    item: int | None = None  # its place in the list there


class _EmptyMessageError(DataError):
    """A message without a text: the record teaches nothing."""


def with_messages(records: Records, *, replies: bool, keep_empty: bool | None = None) -> Records:
    """Make the column `messages` of the columns of any form, which it replaces.

    The forms are `messages` (`{"role": ..., "content": ...}`); `conversations` (`{"from": ...,
    "value": ...}`); `instruction`, perhaps `input`, and `output`; `prompt` and `completion`, texts
    or messages. The last two may have earlier turns in `history`: `[[question, reply], ...]`, or
    messages. A column `system` has the message of the system, unless the conversation begins with
    one.

    Args:
        records: in one of these forms.
        replies: whether there must be a reply.
        keep_empty: whether a record with an empty message keeps its place, with no messages; else
            it is left out, and counted in the notes. Default: where there need be no reply.

    Raises:
        DataError: there is no such form, a record has roles out of order or an unknown one, or
            every record to be left out; names file, line and message.
    """
    keep_empty = not replies if keep_empty is None else keep_empty
    known = [name for name in FORMS if name in records.columns]
    if not known:
        raise _no_form(records)
    # Each record has a form of its own: a file may be several that were joined.
    forms = [_form(records, row, known) for row in range(len(records))]
    used = [name for name in known if name in forms] or known[:1]
    for form in used if replies else ():
        answer = {ALPACA[0]: ALPACA[2], PROMPT: COMPLETION}.get(form)
        if form == PROMPT:
            _check_no_pairs(records)
        if answer is not None:
            records.mapped({}, [form, answer])  # raises if it is missing
    taken = [name for name in records.columns if any(name in FORMS[form] for form in used)]
    rows, kept, empty = [], [], list[DataError]()
    messages: list[dict[str, str]]
    for row, form in enumerate(forms):
        try:
            messages = _messages(records, row, _turns(records, row, form, replies=replies))
        except _EmptyMessageError as error:
            if not keep_empty:
                empty.append(error)
                continue
            messages = []
        others = {k: v for k, v in records.rows[row].items() if k not in taken}
        rows.append({**others, MESSAGES: messages})
        kept.append(row)
    if not rows and empty:
        raise empty[0]
    columns = [name for name in records.columns if name not in taken]
    adapted = replace(
        records.take(kept) if empty else records,
        rows=rows,
        columns=(*dict.fromkeys(columns), MESSAGES),
        renamed={**{name: name for name in taken}, **records.renamed},
    )
    if not empty:
        return adapted
    count = f"{len(empty):,} of {len(records):,} records left out"
    return adapted.noting(f"{count} for an empty message; the first: {empty[0].message}")


def _form(records: Records, row: int, known: list[str]) -> str:
    """The form of a record: the first that it has something of, else the first of its data."""
    return next((form for form in known if not _is_blank(records, row, form)), known[0])


def messages_of(records: Records, row: int, column: str = MESSAGES) -> list[dict[str, str]]:
    """The messages of a record (errors as in `with_messages`); a plain text is a user's message."""
    return _messages(records, row, _listed(records, row, column))


def _check_no_pairs(records: Records) -> None:
    """Raise a DataError if prompts have pairs of replies to choose from, and no single reply."""
    columns = {*records.columns}
    if COMPLETION not in columns and {"chosen", "rejected"} <= columns:
        raise DataError(
            f"{records.origin}: no column '{COMPLETION}'; it has "
            + ", ".join(map(repr, records.columns)),
            "These are pairs of replies, for dpo and reward (pretune train dpo data.train="
            f"{records.origin}); data.columns.{COMPLETION}=chosen learns the better ones.",
        )


def _no_form(records: Records) -> DataError:
    near = ((form, similar_column(form, records.columns, cutoff=0.75)) for form in FORMS)
    meant = next((f"Is it data.columns.{form}={name}? " for form, name in near if name), "")
    # A form may have been there until its column was given another name.
    renamed = next((pair for pair in records.renamed.items() if pair[1] in FORMS), None)
    if renamed is not None:
        ours, theirs = renamed
        meant = (
            f"'{theirs}' would be it, but data.columns.{ours}={theirs} says that it is '{ours}': "
            "name another column there. "
        )
    return DataError(
        f"{records.origin}: no column {', '.join(map(repr, FORMS))}; it has "
        + ", ".join(map(repr, records.columns)),
        f"{meant}Say where the conversations are: data.columns.{MESSAGES}=COLUMN, or "
        f"data.columns.{ALPACA[0]}=COLUMN data.columns.{ALPACA[2]}=COLUMN.",
    )


def _messages(records: Records, row: int, turns: Iterator[_Turn]) -> list[dict[str, str]]:
    """Check the messages of a record one by one."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        where = records.where(row, turn.column, turn.item)
        if not turn.content.strip():
            what = "reply" if turn.role == "assistant" else "message"
            raise _EmptyMessageError(f"{where}: an empty {what}", "Write it, or remove the record.")
        records.checked(turn.content, row, turn.column, turn.item)
        _check_order(turn.role, messages, where)
        messages.append({"role": turn.role, "content": turn.content})
    return messages


def _turns(records: Records, row: int, form: str, *, replies: bool) -> Iterator[_Turn]:
    """The messages of a record in that form."""
    if form in (MESSAGES, CONVERSATIONS):
        turns = [*_listed(records, row, form)]
    elif form == PROMPT:
        turns = [*_earlier(records, row), *_listed(records, row, PROMPT)]
        if replies or not _is_blank(records, row, COMPLETION):
            turns += _listed(records, row, COMPLETION, alone="assistant")
    else:
        turns = [*_earlier(records, row), *_alpaca(records, row, replies=replies)]
    # A message of the system in the conversation goes before that of the column.
    if not (turns and turns[0].role == "system") and not _is_blank(records, row, SYSTEM):
        yield _Turn("system", records.text(row, SYSTEM), SYSTEM)
    yield from turns


def _listed(records: Records, row: int, column: str, alone: str = "user") -> Iterator[_Turn]:
    """The messages in the list of a column; a text or a number is one message, by `alone`."""
    value = records.rows[row].get(column)
    if is_missing(value) or value in ([], ()):
        yield _Turn(alone, "", column)
        return
    number = isinstance(value, int | float) and column in (PROMPT, COMPLETION)
    if isinstance(value, str) or number:
        yield _Turn(alone, records.text(row, column), column)
        return
    hint = 'A conversation is [{"role": "user", "content": "..."}, {"role": "assistant", ...}].'
    for item, message in enumerate(records.items(value, row, column, "messages", hint)):
        yield _listed_turn(message, records, row, column, item)


def _listed_turn(value: Any, records: Records, row: int, column: str, item: int) -> _Turn:
    where = records.where(row, column, item)
    names = (
        ("from", "value") if isinstance(value, dict) and "from" in value else ("role", "content")
    )
    if isinstance(value, dict) and names[1] in value and value[names[1]] is None:
        value = {**value, names[1]: ""}
    if not isinstance(value, dict) or not all(isinstance(value.get(n), str) for n in names):
        raise DataError(
            f"{where}: expected a message with a {names[0]} and a {names[1]}, both texts",
            'For example {"role": "user", "content": "..."}.',
        )
    # The role under our name.
    given, content = value[names[0]], value[names[1]]
    role = ROLES.get(given)
    if role is None:
        raise DataError(
            f"{where}: the role {names_in_line([given])} is not known", did_you_mean(given, ROLES)
        )
    return _Turn(role, content, column, item)


def roles_after(last: str | None) -> tuple[str, ...]:
    """The roles that may speak after one; after None: at the beginning."""
    known = {None: ("system", "user"), "system": ("user",), "user": ("assistant",)}
    return known.get(last, ("user",))


def _check_order(role: str, before: list[dict[str, str]], where: str) -> None:
    last = before[-1]["role"] if before else None
    expected = roles_after(last)
    if role not in expected:
        after = "at the beginning" if last is None else f"after '{last}'"
        raise DataError(
            f"{where}: roles out of order: '{role}' {after}, expected {' or '.join(expected)}",
            "user and assistant take turns, the user first; before them system, once or not at "
            "all. Join messages of one role, or remove the record.",
        )


def _earlier(records: Records, row: int) -> Iterator[_Turn]:
    """The turns before the last question: `history` has messages, or a question and its reply."""
    value = records.rows[row].get(HISTORY)
    if is_missing(value) or value in ([], (), "[]"):
        return
    hint = 'Earlier turns are [["a question", "its reply"], ...].'
    for item, pair in enumerate(records.items(value, row, HISTORY, "pairs", hint)):
        if isinstance(pair, dict):
            yield _listed_turn(pair, records, row, HISTORY, item)
            continue
        both = isinstance(pair, list | tuple) and len(pair) == 2
        if not both or not all(isinstance(text, str) for text in pair):
            given = f"a list of {len(pair)}" if isinstance(pair, list | tuple) else ""
            raise DataError(
                f"{records.where(row, HISTORY, item)}: expected a question and its reply, both "
                f"texts, found {given or describe_value(pair)}",
                hint,
            )
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield _Turn(role, text, HISTORY, item)


def _alpaca(records: Records, row: int, *, replies: bool) -> Iterator[_Turn]:
    """The messages of Alpaca's columns: the user asks with instruction and input, if any."""
    names = [name for name in ALPACA[:2] if not _is_blank(records, row, name)]
    asked = "\n\n".join(records.text(row, name) for name in names)
    yield _Turn("user", asked, ALPACA[0])
    # The output may be missing where only answers are to be generated.
    blank = _is_blank(records, row, ALPACA[2])
    if replies or not blank:
        yield _Turn("assistant", "" if blank else records.text(row, ALPACA[2]), ALPACA[2])


def _is_blank(records: Records, row: int, column: str) -> bool:
    value = records.rows[row].get(column)
    return is_missing(value) or (isinstance(value, str) and not value.strip())
