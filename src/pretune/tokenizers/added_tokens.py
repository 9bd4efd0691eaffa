"""Tokens that were added to a bare vocabulary, as older transformers noted them beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError, DataError
from pretune.tokenizers.tokenizer import Tokenizer

#: From each token to its id.
ADDED_FILE = "added_tokens.json"
#: In `tokenizer_config.json`, newer: from each id to the token and how it is found in a text.
_DECODER = "added_tokens_decoder"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_AGAIN = "Copy the folder again, with all of its files."


def add_noted(
    engine: RustTokenizer, folder: Path, ids: Mapping[str, Any], said: Mapping[str, Any]
) -> None:
    """Add the tokens that the files of a folder name, in the order of their ids.

    Args:
        engine: with the vocabulary; changed.
        folder: where the files are, for messages.
        ids: what `ADDED_FILE` has.
        said: what the other files say about tokens.

    Raises:
        CheckpointError: the files are not as they have to be, or the ids do not follow on those of
            the vocabulary.
    """
    more = said.get("additional_special_tokens")
    special = {_content(one) for one in more} if isinstance(more, list) else set()
    noted = _of_file(folder / ADDED_FILE, ids, special)
    noted |= _of_settings(folder / "tokenizer_config.json", said.get(_DECODER) or {})
    for number, (token, path) in sorted(noted.items(), key=lambda one: one[0]):
        present = engine.token_to_id(token.content)
        place = engine.get_vocab_size(with_added_tokens=True) if present is None else present
        if number != place:
            raise CheckpointError(
                f"{path}: the added token {token.content!r} has the id {number}, but with this "
                f"vocabulary it is {place}",
                _AGAIN,
            )
        engine.add_tokens([token])
    known = {token.content for token, _ in noted.values()}
    engine.add_special_tokens(
        [token for token in sorted(special - known - {""}) if engine.token_to_id(token) is not None]
    )


def _content(one: object) -> str:
    """A token in the short or the long form; nothing if it is neither."""
    content = one.get("content") if isinstance(one, dict) else one
    return content if isinstance(content, str) else ""


def _of_file(
    path: Path, ids: Mapping[str, Any], special: set[str]
) -> dict[int, tuple[AddedToken, Path]]:
    found = {}
    for token, number in ids.items():
        if type(number) is not int or not token:
            raise CheckpointError(f"{path}: {token!r}: {number!r} is no token and its id", _AGAIN)
        own = token in special  # found as it is spelled; others after lower-casing, too
        found[number] = (AddedToken(token, normalized=not own, special=own), path)
    return found


def _of_settings(path: Path, decoder: object) -> dict[int, tuple[AddedToken, Path]]:
    found = {}
    for number, one in decoder.items() if isinstance(decoder, dict) else [("", decoder)]:
        token = _token(one)
        if token is None or not number.isdecimal():
            raise CheckpointError(
                f"{path}: {_DECODER}: {number!r}: {one!r} is no id and its token", _AGAIN
            )
        found[int(number)] = (token, path)
    return found


def _token(one: object) -> AddedToken | None:
    """The token of a long form; None: it is none."""
    if not isinstance(one, dict) or not _content(one):
        return None
    flags = {name: one[name] for name in _FLAGS if name in one}
    if not all(isinstance(value, bool) for value in flags.values()):
        return None
    return AddedToken(_content(one), **{"normalized": not flags.get("special", False), **flags})


def _has_ideograph(token: str) -> bool:
    """BERT's normalizer sets these apart with spaces, so such a token must be found before it."""
    return any("\u3400" <= character <= "\u9fff" for character in token)


def add_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> int:
    """Add whole tokens that are never split, in place; those already known are passed over.

    Args:
        tokenizer: to change.
        tokens: as they occur in text. Matched after normalisation, so that an uncased tokenizer
            finds them in any case.

    Returns:
        how many were new.

    Raises:
        DataError: one is empty or only white space.
    """
    for token in tokens:
        if not token.strip():
            raise DataError(f"new token {token!r}: is empty", "Give every new token some letters.")
    known = tokenizer.engine.get_vocab(with_added_tokens=True)
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    added: int = tokenizer.engine.add_tokens(
        [
            AddedToken(token, single_word=False, normalized=not _has_ideograph(token))
            for token in fresh
        ]
    )
    return added
