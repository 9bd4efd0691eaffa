"""What the tags of sentences were worth, and which kinds of mistakes are in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pretune.data.records import Records
from pretune.tasks.grading import Decision, Grade, Mistake
from pretune.tasks.tagging.schemes import Span, spans, split_tag

if TYPE_CHECKING:
    from pretune.tasks.tagging.tag import TagPrediction


def types_of(labels: Sequence[str]) -> list[str]:
    """The types of entities that labels are made for, in their order."""
    return list(dict.fromkeys(kind for label in labels if (kind := split_tag(label)[1])))


def tag_grader(
    records: Records,
    tags_of: Callable[[int], list[str]],
    labels: Sequence[str],
    joint: str,
) -> Callable[[TagPrediction, int], Grade]:
    """Entities beside those of the data.

    Counts: of each type how many were found rightly, found, and there; right tags, and words.

    Args:
        records: with their tags.
        tags_of: the tags of a record, by its number, as the model spells them.
        labels: of the model.
        joint: what stands between words.
    """
    types = {kind: i for i, kind in enumerate(types_of(labels))}

    def grade(answer: TagPrediction, row: int) -> Grade:
        words, tags = records.rows[row]["tokens"], tags_of(row)
        right = spans(tags)
        found = {Span(e.start, e.end, e.type): e.score for e in answer.entities}
        counts = [0.0] * (3 * len(types))
        for place, group in enumerate((found.keys() & right, found, right)):
            for span in group:
                counts[place * len(types) + types[span.type]] += 1
        words_right = sum(a == b for a, b in zip(tags, answer.tags or (), strict=True))

        def text(span: Span) -> str:
            return joint.join(words[span.start : span.end])

        def shown(some: Iterable[Span]) -> str:
            return "; ".join(f"{span.type} {text(span)}" for span in some)

        return Grade(
            truth=shown(right),
            answer=shown(found),
            right=set(right) == found.keys(),
            decisions=tuple(Decision(sure, span in right) for span, sure in found.items()),
            mistakes=tuple(span_mistakes(right, found, text)),
            counts=(*counts, float(words_right), float(len(words))),
        )

    return grade


def span_mistakes(
    right: Sequence[Span], found: Mapping[Span, float], text: Callable[[Span], str]
) -> list[Mistake]:
    """What is wrong with some entities, each counted once.

    Those that are right are put aside. Of the others, each that was found is put beside one that is
    there and that it overlaps with: first those of the same place (`type`), then those of the same
    type (`boundary`), then all others (`boundary and type`), the longest overlap first. What is
    left over was `spurious`, or `missed`.

    Args:
        right: what is there.
        found: with the score of each.
        text: of an entity.
    """
    true, guessed = set(right) - found.keys(), found.keys() - set(right)
    pairs = []
    for one in guessed:
        for other in true:
            shared = min(one.end, other.end) - max(one.start, other.start)
            same = (one.start, one.end) == (other.start, other.end)
            if shared > 0:
                order = 0 if same else 1 if one.type == other.type else 2
                pairs.append((order, -shared, other, one))
    mistakes = []
    for order, _, other, one in sorted(pairs):
        if one in guessed and other in true:
            guessed.remove(one)
            true.remove(other)
            kind = ("type", "boundary", "boundary and type")[order]
            detail = one.type if order == 1 else f"{other.type} taken for {one.type}"
            both = text(one) if order == 0 else f"{text(one)} (right: {text(other)})"
            mistakes.append((one.start, Mistake(kind, detail, found[one], both)))
    mistakes += [
        *((one.start, Mistake("spurious", one.type, found[one], text(one))) for one in guessed),
        *((one.start, Mistake("missed", one.type, None, text(one))) for one in true),
    ]
    return [mistake for _, mistake in sorted(mistakes, key=lambda item: (item[0], str(item[1])))]
