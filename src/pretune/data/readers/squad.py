"""The nested JSON of SQuAD 1.1 and 2.0, which CMRC 2018, DRCD and XQuAD use too.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ...,
      "answers": [{"text": ..., "answer_start": ...}], "is_impossible": ...}]}]}]}

The articles may stand in a list of their own, and so may the paragraphs.

Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretune.errors import DataError, describe_value, type_name

#: Values looked at to tell the layout.
_PROBED = 100


def is_squad(values: Sequence[Any]) -> bool:
    """Whether some of the first values of JSON are SQuAD's articles or paragraphs."""
    return any(
        isinstance(value, Mapping)
        and (_holds_objects(value.get("paragraphs")) or {"context", "qas"} <= {*value})
        for value in values[:_PROBED]
    )


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, Mapping) for part in value)


def squad_rows(path: Path, values: Sequence[Any], places: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of SQuAD's articles or paragraphs, one a question.

    A row has the columns of the Hub's `rajpurkar/squad`: `id`, `title`, `context` (one string
    object for all questions of a paragraph), `question`, `answers` (`{"text": [...],
    "answer_start": [...]}`) and, where the file has it, `is_impossible`.

    Args:
        path: the file, for errors.
        values: articles with `paragraphs`, or paragraphs with `context` and `qas`.
        places: of the values in the file.

    Raises:
        DataError: a part is missing or of the wrong type; names the place in the nested JSON.
    """
    both = zip(places, values, strict=True)
    return [row for place, value in both for row in _rows(path, place, value)]


def _rows(path: Path, at: str, article: Any) -> Iterator[dict[str, Any]]:
    # A paragraph may stand where an article would.
    alone = isinstance(article, Mapping) and "qas" in article
    paragraphs = [article] if alone else _part(path, at, article, "paragraphs", list)
    for p, paragraph in enumerate(paragraphs):
        below = at if alone else f"{at}.paragraphs[{p}]"
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
            f"{path}, {place}{named}: expected {type_name(kind)} as '{name}', "
            f"found {describe_value(value)}",
            "SQuAD is {data: [{paragraphs: [{context, qas: [{id, question, answers}]}]}]}.",
        )
    return value
