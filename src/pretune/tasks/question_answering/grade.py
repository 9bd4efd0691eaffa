"""What answers to questions were worth, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pretune.data.records import Records
from pretune.tasks.grading import Decision, Grade, Mistake
from pretune.tasks.question_answering.features import Answer, right_answers
from pretune.tasks.question_answering.options import AnswerOptions
from pretune.tasks.question_answering.scores import comparison

if TYPE_CHECKING:
    from pretune.tasks.question_answering.answer import AnswerPrediction

#: How an answer that there is none is shown.
NONE = "(no answer)"


def answer_grader(
    options: AnswerOptions, records: Records
) -> Callable[[AnswerPrediction, int], Grade]:
    """Exact match and F1 of each record; its counts are those two and 1."""

    def right(row: int) -> list[Answer]:
        return right_answers(records.rows[row], records.where(row, "answers"))

    everything = [[answer.text for answer in right(row)] for row in range(len(records))]
    compare = comparison(everything, options.match, no_answer=options.no_answer)

    def grade(answer: AnswerPrediction, row: int) -> Grade:
        texts = everything[row]
        exact, f1 = compare(texts, answer.answer)
        mistakes: tuple[Mistake, ...] = ()
        if not exact:
            context = str(records.rows[row]["context"])
            mistakes = (_mistake(answer, _places(right(row), context)),)
        return Grade(
            truth=" / ".join(dict.fromkeys(texts)) or NONE,
            answer=answer.answer or NONE,
            right=exact == 1.0,
            decisions=(Decision(answer.score, exact == 1.0),),
            mistakes=mistakes,
            counts=(exact, f1, 1.0),
        )

    return grade


def _places(answers: list[Answer], context: str) -> list[tuple[int, int]]:
    """Where the right answers stand; a text that is not where it is said to be, where it is."""
    found = []
    for answer in answers:
        start = answer.start
        if start < 0 or not context.startswith(answer.text, start):
            start = context.find(answer.text)
        found.append((start, start + len(answer.text)))
    return found


def _mistake(answer: AnswerPrediction, places: list[tuple[int, int]]) -> Mistake:
    """`spurious`: an answer where there is none; `missed`: none where there is one; `boundary`: one
    that overlaps with a right one; `elsewhere`."""
    start, end = answer.start, answer.end
    if start is None or end is None:
        return Mistake("missed", "", answer.score)
    if not places:
        return Mistake("spurious", "", answer.score)
    touched = [(a, b) for a, b in places if 0 <= a < end and start < b]
    if not touched:
        return Mistake("elsewhere", "", answer.score)
    if any(a <= start and end <= b for a, b in touched):
        detail = "a part of the right answer"
    elif any(start <= a and b <= end for a, b in touched):
        detail = "the right answer and more"
    else:
        detail = "overlaps with the right answer"
    return Mistake("boundary", detail, answer.score)
