"""What an answer to a question was worth, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretune.data import Records
from pretune.tasks.answer_features import right_answers
from pretune.tasks.answer_options import AnswerOptions
from pretune.tasks.answer_scores import cmrc, is_chinese, squad_v1, squad_v2
from pretune.tasks.grade import Grade

if TYPE_CHECKING:
    from pretune.tasks.answer import AnswerPrediction

#: How an answer that there is none is shown.
NONE = "(no answer)"


def grade_answer(
    options: AnswerOptions, answer: AnswerPrediction, records: Records, row: int
) -> Grade:
    """Exact match and F1 of one record; its counts are those two and 1.

    Mistakes are: an answer where there is none, none where there is one, one that overlaps with a
    right one (longer, shorter, or shifted), one elsewhere.
    """
    where = records.where(row, "answers")
    texts = [one.text for one in right_answers(records.rows[row], where)]
    compare = squad_v2 if options.no_answer else squad_v1
    by_characters = options.match == "characters" or is_chinese([texts])
    if not options.no_answer and options.match != "words" and by_characters:
        compare = cmrc
    exact, f1 = compare(texts, answer.answer)
    mistakes = () if exact else (_mistake(texts, answer.answer, f1),)
    return Grade(
        " / ".join(dict.fromkeys(texts)) or NONE,
        answer.answer or NONE,
        exact == 1.0,
        answer.score,
        mistakes,
        (exact, f1, 1.0),
    )


def _mistake(right: list[str], given: str, f1: float) -> str:
    if not right:
        return "an answer where there is none"
    if not given:
        return "no answer where there is one"
    if any(given in text for text in right):
        return "part of a right answer"
    if any(text in given for text in right):
        return "a right answer and more"
    return "overlaps with a right answer" if f1 > 0 else "elsewhere"
