"""Tagging schemes: how tags spell entities, and how any of them are read, as conlleval does.

bio    B-x I-x I-x O     (IOB2: every entity begins with B)
iob1   I-x I-x I-x O     (B only after an entity of the same type)
bioes  B-x I-x E-x S-x   (the last word is E, a single one S); bilou: L, U; bmes: M, E, S
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["bio", "iob1", "bioes", "bilou", "bmes"]

#: The letters for the first of several words, those inside, the last one, and a single word.
LETTERS = {"bio": "BIIB", "iob1": "IIII", "bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
_COMMON = {"M": "I", "L": "E", "U": "S"}
OUTSIDE = "O"


@dataclass(frozen=True, order=True)
class EntitySpan:
    """An entity: its first word, the one after its last, and its type."""

    start: int
    end: int
    type: str


def split_tag(tag: str) -> tuple[str, str]:
    """Split a tag into its letter, translated to bioes, and its type, empty for `O`.

    A tag of no scheme is read as `I-` with the tag as type, as transformers does.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letter, dash, kind = tag.partition("-")
    if dash and kind and letter in "BIESMLU" and len(letter) == 1:
        return _COMMON.get(letter, letter), kind
    return "I", tag


def is_tag(tag: str) -> bool:
    """Whether any scheme has such a tag."""
    return tag == OUTSIDE or (len(tag) > 2 and tag[0] in "BIESMLU" and tag[1] == "-")


def spans(tags: Sequence[str]) -> list[EntitySpan]:
    """Return the entities that tags spell, as conlleval reads them, well-formed or not.

    An entity begins at B and S, after O, E and S, and where the type changes; it ends after E and S
    and before another begins. (The script of Tjong Kim Sang & Buchholz 2000, extended by S.)
    """
    entities: list[EntitySpan] = []
    start, last, kind = 0, OUTSIDE, ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        letter, own = split_tag(tag)
        fresh = letter in "BS" or last in "OES" or own != kind
        if last != OUTSIDE and (fresh or letter == OUTSIDE):
            entities.append(EntitySpan(start, i, kind))
        if letter != OUTSIDE and fresh:
            start = i
        last, kind = letter, own
    return entities


def write_tags(entities: Iterable[EntitySpan], length: int, scheme: Scheme) -> list[str]:
    """Return the tags of `length` words with entities that do not overlap."""
    tags = [OUTSIDE] * length
    first, inside, end, single = list(LETTERS[scheme])
    before = EntitySpan(-1, -1, "")
    for span in sorted(entities):
        words = span.end - span.start
        letters = [first, *[inside] * (words - 2), end] if words > 1 else [single]
        if scheme == "iob1" and before.end == span.start and before.type == span.type:
            letters[0] = "B"
        for i, letter in enumerate(letters, start=span.start):
            tags[i] = f"{letter}-{span.type}"
        before = span
    return tags


def labels_of(types: Iterable[str], scheme: Scheme) -> list[str]:
    """Return all tags of a scheme: `O`, then the tags of each type."""
    letters = dict.fromkeys("BI" if scheme == "iob1" else LETTERS[scheme])
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in letters)]


def types_of(labels: Iterable[str]) -> list[str]:
    """Return the types of entities among labels, in their order."""
    return list(dict.fromkeys(kind for label in labels if (kind := split_tag(label)[1])))


def _by_letters(tags: Iterable[str]) -> Scheme | None:
    """Return the scheme to which a letter belongs that tags have; None if all are B and I."""
    letters = {tag[0] for tag in tags if is_tag(tag)}
    if letters & set("LU"):
        return "bilou"
    if "M" in letters:
        return "bmes"
    return "bioes" if letters & set("ES") else None


def find_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Find the scheme of tags: by their letters, or by where B and I stand."""
    seen: set[str] = set()
    inside_begins = lone_b = False
    for tags in sentences:
        last, kind = OUTSIDE, ""
        seen.update(tags)
        for tag in tags:
            letter, own = split_tag(tag)
            if last == OUTSIDE or own != kind:  # an entity that touches none of its type begins
                inside_begins |= letter == "I"
                lone_b |= letter == "B"
            last, kind = letter, own
    return _by_letters(seen) or ("iob1" if inside_begins and not lone_b else "bio")


def scheme_of(labels: Sequence[str]) -> Scheme:
    """Return the scheme of a model's labels.

    If a type has I and no B, or all labels are bare (PER), it is iob1, which needs no B: such
    models come from data without a B, or without one for that type.
    """
    split = [split_tag(label) for label in labels if is_tag(label)]
    begun = {kind for letter, kind in split if letter == "B"}
    all_begin = begun and all(kind in begun for letter, kind in split if letter == "I")
    return _by_letters(labels) or ("bio" if all_begin else "iob1")


def spelled(tag: str, labels: Container[str]) -> str | None:
    """Return a tag as a model with these labels spells it; None if it has no such tag.

    A model without B-PER may have I-PER or PER instead; two entities of a type that touch become
    one.
    """
    letter, kind = split_tag(tag)
    instead = {"B": "BI", "S": "BI"}.get(letter, "I") if kind else ""
    spellings = [tag, *(f"{other}-{kind}" for other in instead), *([kind] if kind else [])]
    return next((label for label in spellings if label in labels), None)


def follows(before: str | None, after: str | None, scheme: Scheme) -> bool:
    """Whether `after` may follow `before` in the scheme; None: the start or end of a sentence."""
    last, kind = split_tag(OUTSIDE if before is None else before)
    letter, own = split_tag(OUTSIDE if after is None else after)
    goes_on = kind == own and last in "BI" and letter != OUTSIDE
    if scheme == "iob1":
        return letter != "B" or (kind == own and last in "BI")
    if scheme == "bio":
        return letter != "I" or goes_on
    if last in "BI":  # an entity is not finished yet
        return goes_on and letter in "IE"
    return letter in "OBS"


def malformed(tags: Sequence[str], scheme: Scheme) -> int | None:
    """Return the first word, from 0, whose tag the scheme does not allow there; None: all are."""
    for i, (before, after) in enumerate(zip([None, *tags], [*tags, None], strict=True)):
        if not follows(before, after, scheme):
            return min(i, len(tags) - 1)
    return None
