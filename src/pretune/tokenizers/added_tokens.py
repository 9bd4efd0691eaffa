"""Tokens added to a vocabulary: those that checkpoints list in files beside it, and new ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError, DataError
from pretune.tokenizers.tokenizer import Tokenizer

#: Older transformers wrote added tokens here: token -> id.
ADDED_FILE = "added_tokens.json"
#: Newer ones write them into `tokenizer_config.json`: id -> token and how it is matched in a text.
_DECODER = "added_tokens_decoder"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_AGAIN = "Copy the folder again, with all of its files."


def add_listed(
    engine: RustTokenizer, folder: Path, ids: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Add the tokens that the files of a folder list to an engine, in the order of their ids.

    `ids` are the content of `ADDED_FILE`, `settings` the content of the other files about tokens.

    Raises:
        CheckpointError: a file is malformed, or the ids do not continue the vocabulary.
    """
    more = settings.get("additional_special_tokens")
    special = {_content(entry) for entry in more} if isinstance(more, list) else set()
    listed = _from_file(folder / ADDED_FILE, ids, special)
    listed |= _from_settings(folder / "tokenizer_config.json", settings.get(_DECODER) or {})
    for number, (token, path) in sorted(listed.items(), key=lambda item: item[0]):
        # The engine numbers new tokens itself: its number has to be the listed one.
        present = engine.token_to_id(token.content)
        place = engine.get_vocab_size(with_added_tokens=True) if present is None else present
        if number != place:
            raise CheckpointError(
                f"{path}: the added token {token.content!r} has the id {number}, but with this "
                f"vocabulary it is {place}",
                _AGAIN,
            )
        engine.add_tokens([token])
    # Special tokens that are in the vocabulary already are only marked as special.
    known = {token.content for token, _ in listed.values()}
    engine.add_special_tokens(
        [token for token in sorted(special - known - {""}) if engine.token_to_id(token) is not None]
    )


def _content(entry: object) -> str:
    """The text of a token in the short or the long form; empty for anything else."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else ""


def _from_file(
    path: Path, ids: Mapping[str, Any], special: set[str]
) -> dict[int, tuple[AddedToken, Path]]:
    tokens = {}
    for token, number in ids.items():
        if type(number) is not int or not token:
            raise CheckpointError(
                f"{path}: {token!r}: {number!r} is not a token and its id", _AGAIN
            )
        own = token in special  # matched as spelled; other tokens are matched after normalization
        tokens[number] = (AddedToken(token, normalized=not own, special=own), path)
    return tokens


def _from_settings(path: Path, decoder: object) -> dict[int, tuple[AddedToken, Path]]:
    tokens = {}
    for number, entry in decoder.items() if isinstance(decoder, dict) else [("", decoder)]:
        token = _token(entry)
        if token is None or not number.isdecimal():
            raise CheckpointError(
                f"{path}: {_DECODER}: {number!r}: {entry!r} is not an id and its token", _AGAIN
            )
        tokens[int(number)] = (token, path)
    return tokens


def _token(entry: object) -> AddedToken | None:
    """The token of an entry in the long form; None for anything else."""
    if not isinstance(entry, dict) or not _content(entry):
        return None
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    if not all(isinstance(value, bool) for value in flags.values()):
        return None
    return AddedToken(_content(entry), **{"normalized": not flags.get("special", False), **flags})


_IDEOGRAPH = re.compile("[\u3400-\u9fff]")


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> int:
    """Add whole tokens that are never split, in place, and return the number of new ones.

    They are matched after normalization, so an uncased tokenizer matches them in any case.

    Raises:
        DataError: a token is empty or only white space.
    """
    for token in tokens:
        if not token.strip():
            raise DataError(f"new token {token!r}: is empty", "Give every new token some letters.")
    known = tokenizer.engine.get_vocab(with_added_tokens=True)
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    # BERT's normalizer would put spaces around an ideograph, so such tokens are matched before it.
    normal = {token: _IDEOGRAPH.search(token) is None for token in fresh}
    return tokenizer.engine.add_tokens(
        [AddedToken(token, single_word=False, normalized=normal[token]) for token in fresh]
    )
