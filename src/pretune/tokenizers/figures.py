"""Figures of a tokenizer on a text: how far it compresses, and what it does not know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import decoders

from pretune.tokenizers.tokenizer import Tokenizer
from pretune.tokenizers.unknown import DroppedCharacters

#: Characters of a line that is shown as an example.
_EXAMPLE_CHARS = range(16, 81)
_EXAMPLES = 3
#: Vocabulary entries that are shown.
_SHOWN = 8
#: Texts encoded at a time.
_BATCH = 64


@dataclass(frozen=True, slots=True)
class TokenizerFigures:
    """Figures of a tokenizer on a text."""

    vocab_size: int  # number of entries, with special tokens
    # The share that is [UNK] of the tokens, 0 to 1; a character that is dropped, where there is
    # no [UNK], counts as one.
    unknown: float
    characters_per_token: float  # the higher, the shorter are sequences
    bytes_per_token: float  # in bytes of UTF-8, comparable between languages
    longest: tuple[str, ...]  # the longest entries, as text
    # The first entries that training made, in order: the most frequent pairs.
    first: tuple[str, ...]
    examples: tuple[tuple[str, tuple[str, ...]], ...]  # lines of the text and their tokens


def measure_tokenizer(tokenizer: Tokenizer, texts: Iterable[str]) -> TokenizerFigures:
    """Encode texts, without special tokens around them, and count."""
    # Counts over all texts, and some lines of the first ones as examples.
    characters = size = tokens = unknown = lost = 0
    unknown_id, dropped = tokenizer.special_id("unk_token"), DroppedCharacters(tokenizer.engine)
    lines: list[str] = []
    for batch in _batched(texts):
        if len(lines) < _EXAMPLES:
            lines += _example_lines(batch)
        encodings = tokenizer.encode_bare(batch)
        for text, encoding in zip(batch, encodings, strict=True):
            characters += len(text)
            size += len(text.encode())
            tokens += len(encoding.ids)
            lost += dropped(text).total()
            unknown += 0 if unknown_id is None else encoding.ids.count(unknown_id)
    # Entries are shown as text, and compared by their whole characters.
    byte_level = isinstance(tokenizer.engine.decoder, decoders.ByteLevel)
    show = _readable if byte_level else str
    entries, divisor = _entries(tokenizer), max(tokens, 1)

    def length(entry: str) -> int:
        bytewise = byte_level and all(character in _BYTES for character in entry)
        whole = _bytes(entry).decode(errors="ignore") if bytewise else entry.removeprefix("##")
        return len(whole)

    def tokens_of(line: str) -> tuple[str, ...]:
        return tuple(map(show, tokenizer.tokens(tokenizer.encode([line])[0].ids)))

    return TokenizerFigures(
        vocab_size=tokenizer.vocab_size,
        unknown=(unknown + lost) / max(tokens + lost, 1),
        characters_per_token=characters / divisor,
        bytes_per_token=size / divisor,
        longest=tuple(map(show, sorted(entries, key=length, reverse=True)[:_SHOWN])),
        first=tuple(map(show, entries[:_SHOWN])),
        examples=tuple((line, tokens_of(line)) for line in lines[:_EXAMPLES]),
    )


def _batched(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _example_lines(texts: list[str]) -> list[str]:
    """Whole lines of a length that can be shown, or else the beginnings of texts."""
    inner = (line.strip() for text in texts for line in text.split("\n")[1:-1])
    lines = [line for line in inner if len(line) in _EXAMPLE_CHARS]
    if not lines:
        lines = [text.strip()[: _EXAMPLE_CHARS[-1]] for text in texts if text.strip()]
    return lines[:: max(1, len(lines) // _EXAMPLES)]


def _entries(tokenizer: Tokenizer) -> list[str]:
    """The entries of more than one symbol, by id, without special tokens."""
    vocabulary = tokenizer.engine.get_vocab(with_added_tokens=False)
    special = {token.content for token in tokenizer.engine.get_added_tokens_decoder().values()}
    entries = []
    for token in sorted(vocabulary, key=vocabulary.__getitem__):
        bare = token.removeprefix("##") if len(token) > 2 else token
        if len(bare) > 1 and token not in special:
            entries.append(token)
    return entries


def _byte_table() -> dict[str, int]:
    """GPT-2's characters for bytes: the visible ones of Latin-1, and U+0100 and on for the rest."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_table()


def _bytes(token: str) -> bytes:
    return bytes(_BYTES[character] for character in token)


def _readable(token: str) -> str:
    """A byte-level token as text; bytes of an incomplete character are written like \\xe4."""
    if any(character not in _BYTES for character in token):
        return token  # a special token
    return _bytes(token).decode(errors="backslashreplace")
