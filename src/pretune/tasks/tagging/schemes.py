"""How tags spell entities: the schemes, and reading any of them as conlleval does.

bio    B-x I-x I-x O     (IOB2: every entity begins with B)
iob1   I-x I-x I-x O     (B only where an entity touches one of its type)
bioes  B-x I-x E-x S-x   (the last word is E, a single one S); bilou: L, U; bmes: M, E, S
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["bio", "iob1", "bioes", "bilou", "bmes"]

#: The letters for the first of several words, those inside, the last one, and a single word.
LETTERS: dict[str, str] = {
    "bio": "BIIB",
    "iob1": "IIII",
    "bioes": "BIES",
    "bilou": "BILU",
    "bmes": "BMES",
}
_COMMON = {"M": "I", "L": "E", "U": "S"}
OUTSIDE = "O"


@dataclass(frozen=True, order=True)
class Span:
    """An entity: its first word, the one after its last, and its type."""

    start: int
    end: int
    type: str


def split_tag(tag: str) -> tuple[str, str]:
    """The letter of a tag (of bioes, whatever the scheme) and its type; `O` has none.

    What is in no scheme is read as `I-` before a type of that name, as transformers does it.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letter, dash, kind = tag.partition("-")
    if dash and kind and letter in "BIESMLU" and len(letter) == 1:
        return _COMMON.get(letter, letter), kind
    return "I", tag


def is_tag(tag: str) -> bool:
    """Whether it is a tag of one of the schemes."""
    return tag == OUTSIDE or (len(tag) > 2 and tag[0] in "BIESMLU" and tag[1] == "-")


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities, as conlleval reads them: every sequence means something.

    An entity begins at B and S, after O, E and S, and where the type changes; it ends after E and S
    and before whatever begins another. (Tjong Kim Sang & Buchholz 2000's script, with S.)
    """
    found: list[Span] = []
    start, last, kind = 0, OUTSIDE, ""
    for i, tag in enumerate([*tags, OUTSIDE]):
        letter, own = split_tag(tag)
        fresh = letter in "BS" or last in "OES" or own != kind
        if last != OUTSIDE and (fresh or letter == OUTSIDE):
            found.append(Span(start, i, kind))
        if letter != OUTSIDE and fresh:
            start = i
        last, kind = letter, own
    return found


def write(entities: Iterable[Span], length: int, scheme: Scheme) -> list[str]:
    """The tags of entities that do not overlap, for so many words."""
    tags = [OUTSIDE] * length
    first, inside, end, single = list(LETTERS[scheme])
    before = Span(-1, -1, "")
    for one in sorted(entities):
        letters = [inside] * (one.end - one.start)
        letters[0], letters[-1] = first, end
        if len(letters) == 1:
            letters = [single]
        if scheme == "iob1" and before.end == one.start and before.type == one.type:
            letters[0] = "B"
        for i, letter in enumerate(letters, start=one.start):
            tags[i] = f"{letter}-{one.type}"
        before = one
    return tags


def labels_of(types: Iterable[str], scheme: Scheme) -> list[str]:
    """All tags of a scheme: `O`, then those of each type."""
    letters = dict.fromkeys("BI" if scheme == "iob1" else LETTERS[scheme])
    return [OUTSIDE, *(f"{letter}-{kind}" for kind in types for letter in letters)]


def _by_letters(tags: Iterable[str]) -> Scheme | None:
    """The scheme that has letters which are among those of some tags; None if all are B and I."""
    letters = {tag[0] for tag in tags if is_tag(tag)}
    if letters & set("LU"):
        return "bilou"
    if "M" in letters:
        return "bmes"
    return "bioes" if letters & set("ES") else None


def find_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tags are in: by their letters, and of B and I by where they stand."""
    seen: set[str] = set()
    inside_begins = lone_b = False
    for tags in sentences:
        last, kind = OUTSIDE, ""
        seen.update(tags)
        for tag in tags:
            letter, own = split_tag(tag)
            if letter == "I" and (last == OUTSIDE or own != kind):
                inside_begins = True
            if letter == "B" and (last == OUTSIDE or own != kind):
                lone_b = True
            last, kind = letter, own
    return _by_letters(seen) or ("iob1" if inside_begins and not lone_b else "bio")


def scheme_of(labels: Sequence[str]) -> Scheme:
    """The scheme that a model's labels are in.

    Where a type has I and no B, or all are bare (PER), it is iob1, in which no B has to be: so are
    the labels of models whose training data had none, or none for that type.
    """
    split = [split_tag(label) for label in labels if is_tag(label)]
    begun = {kind for letter, kind in split if letter == "B"}
    all_begin = begun and all(kind in begun for letter, kind in split if letter == "I")
    return _by_letters(labels) or ("bio" if all_begin else "iob1")


def spelled(tag: str, labels: Container[str]) -> str | None:
    """A tag as a model with these labels has it: there may be no B-PER, but I-PER or PER.

    Two entities of one type that touch are one, then. None: it has no such tag.
    """
    letter, kind = split_tag(tag)
    instead = {"B": "BI", "S": "BI"}.get(letter, "I") if kind else ""
    spellings = [tag, *(f"{one}-{kind}" for one in instead), *([kind] if kind else [])]
    return next((one for one in spellings if one in labels), None)


def follows(before: str | None, after: str | None, scheme: Scheme) -> bool:
    """Whether a well-formed sequence may have one tag after another; None: begins or ends."""
    last, kind = split_tag(OUTSIDE if before is None else before)
    letter, own = split_tag(OUTSIDE if after is None else after)
    goes_on = kind == own and last in "BI" and letter != OUTSIDE
    if scheme == "iob1":
        return letter != "B" or (kind == own and last in "BI")
    if scheme == "bio":
        return letter != "I" or goes_on
    if last in "BI":  # something has to come, of the same type
        return goes_on and letter in "IE"
    return letter in "OBS"


def malformed(tags: Sequence[str], scheme: Scheme) -> int | None:
    """The first word (0-based) whose tag may not stand there; None where all is well."""
    for i, (before, after) in enumerate(zip([None, *tags], [*tags, None], strict=True)):
        if not follows(before, after, scheme):
            return min(i, len(tags) - 1)
    return None
