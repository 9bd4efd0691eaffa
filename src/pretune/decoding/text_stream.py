"""From tokens to text, piece by piece: whole characters, and nothing that must be taken back."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import decoders

from pretune.tokenizers.tokenizer import Tokenizer

#: Tokens that are decoded together where only the last one is new: enough for the tokenizer to
#: know whether a space stands between.
WINDOW = 16

_CJK = (
    "\u2e80-\u2fdf\u3000-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff“”‘’…—"
)
_BETWEEN_CJK = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])")


class Detokenizer:
    """Gives the text of a continuation as its tokens come.

    A character whose bytes are spread over several tokens comes with the last of them; one that is
    never completed does not come at all.

    Args:
        tokenizer: of the model.
        prompt: the tokens that the continuation follows.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes = None
        if isinstance(tokenizer.engine.decoder, decoders.ByteLevel):
            self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
            self._added = tokenizer.engine.get_added_tokens_decoder()
            return
        self._ids = list(prompt[-WINDOW:])
        self._shown = plain_text(tokenizer, self._ids)

    def push(self, token: int) -> str:
        """What one more token adds to the text."""
        if self._bytes is not None:
            return self._bytes.decode(self._token_bytes(token))
        self._ids.append(token)
        text = plain_text(self._tokenizer, self._ids)
        if text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        if len(self._ids) > 2 * WINDOW:
            self._ids = self._ids[-WINDOW:]
            text = plain_text(self._tokenizer, self._ids)
        self._shown = text
        return new

    def _token_bytes(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        name = self._tokenizer.engine.id_to_token(token) or ""
        table = _byte_of()
        if all(character in table for character in name):
            return bytes(table[character] for character in name)
        return name.encode()


def plain_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of tokens, without special ones; a WordPiece tokenizer's Chinese without spaces."""
    text = tokenizer.decode(ids)
    # BERT's tokenizer puts spaces around each Chinese character; its decoder leaves them there.
    wordpiece = isinstance(tokenizer.engine.decoder, decoders.WordPiece)
    return _BETWEEN_CJK.sub("", text) if wordpiece else text


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens add to a prompt."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join(detokenizer.push(token) for token in tokens)


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """Which byte a character of a byte-level token stands for (Radford et al. 2019, section 2.2).

    Printable Latin-1 characters are their own byte; the other bytes, in order, are the characters
    from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class StopText:
    """Lets text through until a stop text occurs; holds back what may be the beginning of one.

    Args:
        stops: the stop texts; none is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What may be shown now."""
        self._held += text
        places = [self._held.find(stop) for stop in self._stops]
        places = [place for place in places if place >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        keep = self._unsure()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What was held back, where nothing more comes."""
        held, self._held = self._held, ""
        return held

    def _unsure(self) -> int:
        """How many characters at the end a stop text may begin with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
