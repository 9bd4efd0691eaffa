"""From tokens to text as they come: whole characters, and nothing that is taken back later."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers import decoders

from pretune.tokenizers.tokenizer import Tokenizer

#: Earlier tokens that are decoded with a new one: enough for the tokenizer to know whether there
#: is a space between them.
WINDOW = 16

_CJK = (
    "\u2e80-\u2fdf\u3000-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff“”‘’…—"
)
_BETWEEN_CJK = re.compile(f"(?<=[{_CJK}]) (?=[{_CJK}])")
#: Stands for a space in the vocabularies of SentencePiece.
_SPACE = "\u2581"
#: How SentencePiece names a byte of a character that no piece spells.
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Detokenizer:
    """Turns the tokens of a continuation into text one by one.

    A character whose bytes are spread over several tokens comes with the last of them, or never if
    it is not completed. `prompt` has the tokens before the continuation.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes, decoder = None, tokenizer.engine.decoder
        stripped = _stripped_spaces(decoder)
        if isinstance(decoder, decoders.ByteLevel) or stripped is not None:
            self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
            self._names = TokenBytes(tokenizer)
            # The space that stands before a text is not of it.
            begun = any(not self._names.is_special(token) for token in prompt)
            self._strips = bool(stripped) and not begun
            return
        self._ids = list(prompt[-WINDOW:])
        self._shown = plain_text(tokenizer, self._ids)

    def push(self, token: int) -> str:
        """Add a token and return the text it completes."""
        if self._bytes is not None:
            if self._names.is_special(token):
                return ""
            data = self._names.of(token)
            if self._strips:
                data, self._strips = data.removeprefix(b" "), False
            return self._bytes.decode(data)
        # Other tokenizers decode a window of tokens; what is new in its text is shown.
        self._ids.append(token)
        text = plain_text(self._tokenizer, self._ids)
        if text.endswith("\ufffd"):  # a character that is not complete
            return ""
        new = text[len(self._shown) :]
        if len(self._ids) > 2 * WINDOW:
            self._ids = self._ids[-WINDOW:]
            text = plain_text(self._tokenizer, self._ids)
        self._shown = text
        return new


class TokenBytes:
    """The bytes that tokens stand for, each by itself; of a special token its name."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._engine = tokenizer.engine
        self._added = tokenizer.engine.get_added_tokens_decoder()
        self._byte_level = isinstance(tokenizer.engine.decoder, decoders.ByteLevel)
        self._by_number = not self._byte_level and self._engine.token_to_id("<0x0A>") is not None

    def is_special(self, token: int) -> bool:
        """Whether a token is no text but a mark, such as an end of text."""
        added = self._added.get(token)
        return added is not None and added.special

    def of(self, token: int) -> bytes:
        """Return the bytes of a token; they may be a part of a character."""
        added = self._added.get(token)
        if added is not None:
            return added.content.encode()
        name = self._engine.id_to_token(token) or ""
        # SentencePiece writes a byte as its number.
        if self._by_number and (match := _BYTE.fullmatch(name)):
            return bytes([int(match[1], 16)])
        table = _byte_of()
        if self._byte_level and all(character in table for character in name):
            return bytes(table[character] for character in name)
        return name.replace(_SPACE, " ").encode()


def _stripped_spaces(decoder: object) -> int | None:
    """Spaces that a decoder of pieces and bytes, as Llama has it, drops before a text.

    None for other decoders: of this kind each token can be read by itself.
    """
    if not isinstance(decoder, decoders.Sequence):
        return None
    steps = json.loads(decoder.__getstate__())["decoders"]
    whole = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    return {0: 0, 1: 1}.get(len(steps) - 3) if steps in (whole, [*whole, strip]) else None


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text that each token of a sequence stands for, as people read it.

    A text begins with a space where its token begins a word of those that spaces separate. Of the
    tokens that share a character, the first has it and the others are empty; bytes that are no
    character are written as numbers: `\\xe5`.
    """
    names, decoder = TokenBytes(tokenizer), tokenizer.engine.decoder
    texts: list[str] = []
    parts: list[bytes] = []  # of a character that is not complete
    for token, entry in zip(ids, tokenizer.tokens(ids), strict=True):
        special = names.is_special(token)
        if isinstance(decoder, decoders.WordPiece) and not special:
            goes_on = entry.startswith(decoder.prefix)
            texts.append(entry.removeprefix(decoder.prefix) if goes_on else f" {entry}")
            continue
        if special:
            texts += _as_numbers(parts)
            parts = []
        parts.append(names.of(token))
        try:
            texts += [b"".join(parts).decode(), *[""] * (len(parts) - 1)]
        except UnicodeDecodeError as error:
            # Only what lacks bytes at its end can still become a character.
            if error.reason != "unexpected end of data":
                texts += _as_numbers(parts)
                parts = []
        else:
            parts = []
    return texts + _as_numbers(parts)


def _as_numbers(parts: Sequence[bytes]) -> list[str]:
    return [part.decode(errors="backslashreplace") for part in parts]


def visible(text: str) -> str:
    """Return the text of a token so that it is seen, also where it is nothing but space."""
    return text.strip() or ("\N{OPEN BOX}" if text else "\N{MIDDLE DOT}")


def plain_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decode tokens without special tokens, and without WordPiece's spaces in Chinese."""
    text = tokenizer.decode(ids)
    # BERT's tokenizer puts spaces around every Chinese character, which its decoder keeps.
    wordpiece = isinstance(tokenizer.engine.decoder, decoders.WordPiece)
    return _BETWEEN_CJK.sub("", text) if wordpiece else text


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text that tokens add to a prompt."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join(detokenizer.push(token) for token in tokens)


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """The byte for each character of a byte-level token (Radford et al. 2019, section 2.2).

    Printable Latin-1 characters stand for themselves; the characters from U+0100 stand for the
    other bytes in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class StopText:
    """Passes text on until a stop text occurs; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Add text and return what can be shown now."""
        self._held += text
        places = [self._held.find(stop) for stop in self._stops]
        places = [place for place in places if place >= 0]
        if places:
            self.found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        # Hold back an end that may become a stop text.
        keep = self._unsure()
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _unsure(self) -> int:
        """The number of characters at the end that may begin a stop text."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
