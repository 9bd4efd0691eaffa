"""Finding sentences by punctuation alone, in English, Chinese and languages written like them.

Rules, in this order:

1. A line break always ends a sentence.
2. Marks with no other use (。！？；｡ and ؟ ۔ । ॥), together with closing quotes and brackets, end a
   sentence, unless a comma or colon follows.
3. `.`, `!`, `?` and `…`, together with closing quotes and brackets, end a sentence before a space,
   unless a small letter, a comma or a colon follows. Before a Chinese, Japanese or Korean character
   no space is needed, except after a single `.`.
4. A single `.` does not end a sentence after a title (Mr.), an abbreviation (e.g., U.S., vol.), an
   initial (J. Smith), or a number that begins the sentence (2. The second). A sentence that ends
   with `U.S.` is therefore missed, which costs less than a break at every other `U.S.`.
"""

from __future__ import annotations

import re

#: Marks that end a sentence anywhere.
_STRONG = frozenset("。！？；｡؟۔।॥")
_CLOSING = r"[\"'”’»)\]}〉》」』】）］｝〕〗]"
_MARKS = re.compile(rf"(?:[.!?…。！？；｡؟۔।॥]+{_CLOSING}*)+")
_CANDIDATE = re.compile(rf"(?P<line>[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])|{_MARKS.pattern}")
_SPACE = re.compile(r"\s*")
_OPENING = re.compile(r"[\"'“‘«(\[{〈《「『【（［｛〔〖]*")
_GOES_ON = frozenset(",:;，、：；")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]")  # e.g, U.S, a.m, without the last dot
_CJK = re.compile(
    "[\u2e80-\u2fdf\u3005-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff“‘「『《【（]"
)
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        "mr mrs ms dr prof rev hon fr sr jr st mt messrs mme mlle gen col maj capt lt sgt gov sen "
        "rep pres vs cf al viz approx dept est fig figs eq eqs sec ch vol vols no nos pp ed eds "
        "trans jan feb mar apr jun jul aug sep sept oct nov dec",
    )
)
#: Characters searched back for an abbreviation; a text without spaces must not be searched further.
_LONGEST_WORD = 24


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Find the sentences of a text: their (start, end) characters, in order.

    Between sentences there is only white space, and none is empty or begins or ends with it.
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _CANDIDATE.finditer(text):
        # Rule 1, or rules 2 to 4.
        if match["line"] is not None or _ends_sentence(text, start, match):
            _add(spans, text, start, match.end())
            start = match.end()
    _add(spans, text, start, len(text))
    return spans


def _add(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    """Add a sentence without the white space around it, unless it is blank."""
    piece = text[start:end]
    begins = len(piece) - len(piece.lstrip())
    length = len(piece.strip())
    if length:
        spans.append((start + begins, start + begins + length))


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether marks end the sentence that begins at `start`: rules 2 to 4 of this file."""
    end = match.end()
    after = _SPACE.match(text, end).end()  # type: ignore[union-attr]  # always matches
    if after == len(text):
        return True
    # Rules 2 and 3: a comma or colon after the marks keeps the sentence open.
    if text[after] in _GOES_ON:
        return False
    # Rule 2: strong marks need nothing after them.
    marks = match[0]
    if not _STRONG.isdisjoint(marks):
        return True
    # Rule 3: other marks need a space or an ideograph, and no small letter, after them.
    if after == end:
        return marks != "." and _CJK.match(text, end) is not None
    word = _OPENING.match(text, after).end()  # type: ignore[union-attr]
    if text[word : word + 1].islower():
        return False
    # Rule 4: a single dot may belong to the word before it.
    return marks != "." or not _is_abbreviation(text, start, match.start())


def _is_abbreviation(text: str, start: int, dot: int) -> bool:
    """Whether a dot belongs to a title, an abbreviation, an initial or a leading number."""
    before = text[max(start, dot - _LONGEST_WORD) : dot]
    word = before.split()[-1].lstrip("\"'“‘«([{") if before.strip() else ""
    if before[-1:].isspace() or not word:
        return False
    if word.isdigit():
        return text[start:dot].strip() == word
    if len(word) == 1:
        return word.isupper()
    return word.lower() in _ABBREVIATIONS or _DOTTED.fullmatch(word) is not None
