"""Questions and passages for the tests of `answer`."""

from __future__ import annotations

from typing import Any

from pretune.data.records import Records

CONTEXT = "The good film was seen in China. A bad film was seen by nobody, un-able 中国电影好看 x9."


def question(
    text: str, context: str = CONTEXT, *, asked: str = "What film?", number: str = "q"
) -> dict[str, Any]:
    """A record whose answer is the first place of a text in the context; none if it is empty."""
    answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
    if text:
        answers = {"text": [text], "answer_start": [context.index(text)]}
    return {"id": number, "question": asked, "context": context, "answers": answers}


def records(*rows: dict[str, Any]) -> Records:
    columns = tuple(rows[0]) if rows else ()
    return Records(list(rows), "qa.jsonl", range(1, len(rows) + 1), columns)


def long_context(words: int) -> str:
    """A passage with a word that occurs once, `good`, near its end."""
    before = " ".join(f"film{i % 7}" for i in range(words - 4))
    return f"{before} a good bad film"
