"""SentencePiece's table of replacements, applied as SentencePiece applies it.

`normalizers.Precompiled` of the tokenizers library looks at a letter with its marks as a whole, and
may drop a mark, where SentencePiece looks for the longest key at each place. Models of transformers
that read `tokenizer.json` were trained or are used with the former; `MarianTokenizer` with the
latter.
"""

from __future__ import annotations

from array import array
from functools import lru_cache

#: Characters of a key that are looked at; published tables have keys of up to 18.
_LONGEST_KEY = 32


class Charsmap:
    """The table: the size of a trie in bytes, the trie, and texts that end with NUL.

    The trie is a double array of 32-bit units (Darts-clone): the unit of a child lies at its
    parent's base XOR a byte, which is also its label; a unit with a leaf has the position of a text
    at its own base.
    """

    def __init__(self, table: bytes) -> None:
        self._table = table
        start = 4 + int.from_bytes(table[:4], "little")
        self._units = array("I", table[4 : start - start % 4])
        self._texts = table[start:]
        self._begins = lru_cache(maxsize=2**16)(self._begins_key)

    @property
    def text(self) -> str:
        """The table as a text, for comparisons."""
        return self._table.hex()

    def apply(self, text: str) -> tuple[str, list[int] | None]:
        """Replace what the table has, and give for each character of the result where it was.

        The places are None where the text stays as it is; they end with the length of the text.
        """
        if not self._units or (text.isascii() and text.isprintable()):
            return text, None
        parts, places, at = list[str](), list[int](), 0
        while at < len(text):
            length, made = 1, text[at]
            if self._begins(made):
                length, made = self._longest(text[at : at + _LONGEST_KEY]) or (1, made)
            parts.append(made)
            places += [at] * len(made)
            at += length
        return "".join(parts), [*places, len(text)]

    def _longest(self, text: str) -> tuple[int, str] | None:
        """The longest key that a text begins with: its characters, and what replaces it."""
        best = None
        for length in range(1, len(text) + 1):
            ended = self._walk(text[:length])
            if ended is None:
                break
            if ended >= 0:
                best = length, self._text(ended)
        return best

    def _begins_key(self, character: str) -> bool:
        return self._walk(character) is not None

    def _walk(self, text: str) -> int | None:
        """Follow a text: where its replacement is, -1 if it is no key; None if none begins so."""
        units = self._units
        place = _base(units[0])
        for byte in text.encode("utf-8", "surrogatepass"):
            place ^= byte
            if not 0 <= place < len(units) or units[place] & 0x800000FF != byte:
                return None
            unit = units[place]
            place ^= _base(unit)
        if not unit >> 8 & 1 or place >= len(units):
            return -1
        return units[place] & 0x7FFFFFFF

    def _text(self, start: int) -> str:
        end = self._texts.find(b"\0", start)
        return self._texts[start : None if end < 0 else end].decode("utf-8", "replace")


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
