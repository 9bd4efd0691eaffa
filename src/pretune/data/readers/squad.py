"""The nested JSON of SQuAD 1.1 and 2.0, which CMRC 2018, DRCD and XQuAD use too.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
      "answers": [{"text": ..., "answer_start": ...}], "is_impossible": ...}]}]}]}

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretune.errors import DataError, describe_value


def squad_rows(path: Path, text: str) -> list[dict[str, Any]] | None:
    """The rows of a SQuAD file, one a question; None for JSON of another layout.

    A row has the columns of the Hub's `rajpurkar/squad`: `id`, `title`, `context` (one string
    object for all questions of a paragraph), `question`, `answers` (`{"text": [...],
    "answer_start": [...]}`) and, where the file has it, `is_impossible`.

    Raises:
        DataError: a part is missing or of the wrong type; names the place in the nested JSON.
    """
    # SQuAD is one object with articles that have paragraphs; anything else is for other readers.
    if not text.lstrip().startswith("{"):
        return None
    try:
        articles = json.loads(text).get("data")
    except (ValueError, RecursionError):
        return None  # JSON lines, or broken: the reader of JSON lines names the line
    if not isinstance(articles, list) or not any(
        isinstance(article, dict) and "paragraphs" in article for article in articles
    ):
        return None
    return list(_rows(path, articles))


def _rows(path: Path, articles: list[Any]) -> Iterator[dict[str, Any]]:
    for a, article in enumerate(articles):
        at = f"data[{a}]"
        for p, paragraph in enumerate(_part(path, at, article, "paragraphs", list)):
            below = f"{at}.paragraphs[{p}]"
            context = _part(path, below, paragraph, "context", str)
            for q, item in enumerate(_part(path, below, paragraph, "qas", list)):
                place = f"{below}.qas[{q}]"
                question = _part(path, place, item, "question", str)  # `item` is an object, then
                row = {
                    "id": str(item.get("id", place)),
                    "title": article.get("title", ""),
                    "context": context,
                    "question": question,
                    "answers": _answers(path, place, item),
                }
                if "is_impossible" in item:
                    row["is_impossible"] = _part(path, place, item, "is_impossible", bool)
                yield row


def _answers(path: Path, place: str, item: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The answers of a question; a file to predict on has none."""
    texts, starts = [], []
    given = _part(path, place, item, "answers", list) if "answers" in item else []
    for i, answer in enumerate(given):
        here = f"{place}.answers[{i}]"
        texts.append(_part(path, here, answer, "text", str))
        starts.append(_part(path, here, answer, "answer_start", int))
    return {"text": texts, "answer_start": starts}


def _part(path: Path, place: str, parent: Any, name: str, kind: type) -> Any:
    value = parent.get(name) if isinstance(parent, Mapping) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        named = f" (id {parent['id']})" if isinstance(parent, Mapping) and "id" in parent else ""
        raise DataError(
            f"{path}, {place}{named}: expected a {kind.__name__} as '{name}', "
            f"found {describe_value(value)}",
            "SQuAD is {data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}.",
        )
    return value
