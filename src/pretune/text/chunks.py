"""A long text in pieces that give the tokens of the whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Characters that are tokenized at a time; a text is cut only where no token can cross the cut.
CHUNK_CHARS = 200_000
_CUT = re.compile(r"\S\n(?=\S)")


def split_text(text: str, size: int = CHUNK_CHARS) -> Iterator[str]:
    """A long text in pieces that give the tokens of the whole.

    Each ends with a single line end between two characters that are no spaces: there every
    pre-tokenizer cuts, so no token crosses, and none depends on what follows.

    Args:
        text: of any length.
        size: characters of a piece, at least; without such line ends it has more.
    """
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start() + 2]
        start = cut.start() + 2
    yield text[start:]
