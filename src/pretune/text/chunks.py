"""A long text in chunks that give the same tokens as the whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Characters that are tokenized at a time; a text is cut only where no token can cross the cut.
CHUNK_CHARS = 200_000
_CUT = re.compile(r"\S\n(?=\S)")


def split_text(text: str, size: int = CHUNK_CHARS) -> Iterator[str]:
    """Split a long text into chunks that together give the tokens of the whole.

    Each chunk ends with a single line end between two characters that are not spaces. Every
    pre-tokenizer cuts there, so no token crosses the cut, and none depends on what follows. A chunk
    has more than `size` characters where there is no such line end before.
    """
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start() + 2]
        start = cut.start() + 2
    yield text[start:]
