"""What a trained tokenizer does to text: how far it compresses, what it does not know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pretune.tokenizers.tokenizer import Tokenizer

#: Characters of the lines that are shown as examples.
EXAMPLE = range(16, 81)
EXAMPLES = 3
SHOWN = 8
#: Texts encoded at a time.
_MANY = 64


@dataclass(frozen=True, slots=True)
class TokenizerFigures:
    """Figures of a tokenizer on a text.

    Attributes:
        vocab_size: entries, special tokens included.
        unknown: the share of the tokens that are [UNK], 0 to 1.
        characters_per_token: higher is shorter sequences.
        bytes_per_token: the same in bytes of UTF-8; comparable between languages.
        longest: the longest entries, as text.
        first: the first entries that training made, in their order: the most frequent pairs.
        examples: lines of the text and their tokens.
    """

    vocab_size: int
    unknown: float
    characters_per_token: float
    bytes_per_token: float
    longest: tuple[str, ...]
    first: tuple[str, ...]
    examples: tuple[tuple[str, tuple[str, ...]], ...]


def measure_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerFigures:
    """Encode texts and count; special tokens that belong to no text are left out."""
    characters = volume = tokens = unknown = 0
    lost = tokenizer.special_id("unk_token")
    lines: list[str] = []
    for batch in _batched(texts):
        if len(lines) < EXAMPLES:
            lines += _lines(batch)
        for text, encoding in zip(
            batch, tokenizer.engine.encode_batch(batch, add_special_tokens=False), strict=True
        ):
            characters += len(text)
            volume += len(text.encode())
            tokens += len(encoding.ids)
            unknown += 0 if lost is None else encoding.ids.count(lost)
    entries = _entries(tokenizer)
    show = _readable if _is_byte_level(tokenizer) else str
    some = max(tokens, 1)
    return TokenizerFigures(
        vocab_size=tokenizer.vocab_size,
        unknown=unknown / some,
        characters_per_token=characters / some,
        bytes_per_token=volume / some,
        longest=tuple(map(show, sorted(entries, key=_length(tokenizer), reverse=True)[:SHOWN])),
        first=tuple(map(show, entries[:SHOWN])),
        examples=tuple((line, _pieces(tokenizer, line)) for line in lines[:EXAMPLES]),
    )


def _batched(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _MANY:
            yield batch
            batch = []
    if batch:
        yield batch


def _lines(texts: list[str]) -> list[str]:
    """Lines that are whole, and neither too short nor too long to be shown."""
    inner = (line.strip() for text in texts for line in text.split("\n")[1:-1])
    found = [line for line in inner if len(line) in EXAMPLE]
    if not found:
        found = [text.strip()[: EXAMPLE[-1]] for text in texts if text.strip()]
    return found[:: max(1, len(found) // EXAMPLES)]


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    return tokenizer.settings.get("tokenizer_class") == "GPT2Tokenizer"


def _pieces(tokenizer: Tokenizer, text: str) -> tuple[str, ...]:
    ids = tokenizer.encode([text])[0].ids
    found = tokenizer.tokens(ids)
    return tuple(map(_readable, found)) if _is_byte_level(tokenizer) else tuple(found)


def _entries(tokenizer: Tokenizer) -> list[str]:
    """The entries of more than one symbol, by id."""
    model: dict[str, Any] = json.loads(tokenizer.engine.to_str())["model"]
    special = {token.content for token in tokenizer.engine.get_added_tokens_decoder().values()}
    ordered = sorted(model["vocab"], key=model["vocab"].__getitem__)
    found = []
    for token in ordered:
        bare = token.removeprefix("##") if len(token) > 2 else token
        if len(bare) > 1 and token not in special:
            found.append(token)
    return found


def _length(tokenizer: Tokenizer) -> Callable[[str], int]:
    """The characters of an entry; bytes that are only a part of one count for nothing."""
    if not _is_byte_level(tokenizer):
        return lambda token: len(token.removeprefix("##"))
    return lambda token: len(_bytes(token).decode(errors="ignore"))


def _byte_table() -> dict[str, int]:
    """GPT-2 writes bytes that are no visible characters of Latin-1 as U+0100 and on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_table()


def _bytes(token: str) -> bytes:
    return bytes(_BYTES[character] for character in token)


def _readable(token: str) -> str:
    """A byte-level token as text; bytes that are part of a character as \\xe4."""
    if any(character not in _BYTES for character in token):
        return token  # a special token
    return _bytes(token).decode(errors="backslashreplace")
