"""Tokens added to a vocabulary: those that checkpoints list in files beside it, and new ones."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError, DataError
from pretune.tokenizers.tokenizer import DECODER, Tokenizer

#: Older transformers wrote added tokens here: token -> id.
ADDED_FILE = "added_tokens.json"
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_AGAIN = "Copy the folder again, with all of its files."
#: The order in which transformers numbers special tokens that are new.
_ORDER = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def add_listed(
    engine: RustTokenizer,
    folder: Path,
    settings: Mapping[str, Any],
    *,
    others: Mapping[str, Any],
    own: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Add the tokens that the files of a folder list to an engine, in the order of their ids.

    Args:
        engine: gets the tokens.
        folder: of the files, for errors.
        settings: the content of `tokenizer_config.json`; its list goes before all others.
        others: the content of `ADDED_FILE`.
        own: `added_tokens` of a `tokenizer.json`; None for the files of older transformers.

    Raises:
        CheckpointError: a file is malformed, or the ids do not continue the vocabulary.
    """
    if settings.get(DECODER) is not None:
        listed = _from_settings(folder / "tokenizer_config.json", settings[DECODER])
    else:
        named = {_content(settings.get(name)) for name in _ORDER}
        listed = _from_file(folder / ADDED_FILE, others, named | {*_extra(settings)})
        for entry in own or ():
            listed[entry["id"]] = (_made(entry), folder / "tokenizer.json")
    for number, (token, path) in sorted(listed.items(), key=lambda item: item[0]):
        # The engine numbers new tokens itself: its number has to be the listed one. Of a token that
        # it has, a tokenizer.json knows better than a settings file that was copied from elsewhere.
        present = engine.token_to_id(token.content)
        place = engine.get_vocab_size(with_added_tokens=True) if present is None else present
        if number != place and (present is None or own is None):
            raise CheckpointError(
                f"{path}: the added token {token.content!r} has the id {number}, but with this "
                f"vocabulary it is {place}",
                _AGAIN,
            )
        engine.add_tokens([token])


def add_named(engine: RustTokenizer, settings: Mapping[str, Any], usual: Mapping[str, str]) -> None:
    """Make the special tokens that settings name special.

    A token that is not in the vocabulary becomes a new one, as in transformers; of the tokens that
    are `usual` for the class, only those in the vocabulary count.
    """
    marked: dict[str, AddedToken] = {}
    for name in _ORDER:
        token = named_token(settings, name, usual)
        if token and (name in settings or engine.token_to_id(token) is not None):
            marked[token] = _made(settings.get(name, usual.get(name)), content=token)
    # Tokens that are there already keep the way in which they are matched.
    known = {token.content: token for token in engine.get_added_tokens_decoder().values()}
    named = {*marked}
    marked |= _extra(settings)
    for content, entry in marked.items():
        chosen = known.get(content, entry)
        # Of those in a list, some are words that are never divided: they stay in a text.
        special = content in named or chosen.special or entry.special
        (engine.add_special_tokens if special else engine.add_tokens)([chosen])


def named_token(settings: Mapping[str, Any], name: str, usual: Mapping[str, str]) -> str:
    """The text of a special token, or else of the usual one; null in the settings means none."""
    return _content(settings.get(name, usual.get(name)))


def _extra(settings: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The special tokens of a tokenizer that have no fixed names."""
    extra, older = (settings.get(f"{name}_special_tokens") for name in ("extra", "additional"))
    # A model may have a name of its own for one, e.g. `image_token`: at the top, or in an object.
    named = [v for k, v in settings.items() if k.endswith("_token") and k not in _ORDER]
    if isinstance(extra, dict):
        named, extra = [*named, *extra.values()], None
    # The older name of the list counts where the newer has none.
    listed = extra or older
    every = [*named, *(listed if isinstance(listed, list) else ())]
    return {_content(entry): _made(entry) for entry in every if _content(entry)}


def _made(entry: object, content: str = "") -> AddedToken:
    """The special token of an entry in the short or the long form."""
    flags = {**entry} if isinstance(entry, dict) else {}
    kept = {name: flags[name] for name in _FLAGS if isinstance(flags.get(name), bool)}
    special = {"special": True, "normalized": False}
    return AddedToken(content or _content(entry), **{**special, **kept})


def _content(entry: object) -> str:
    """The text of a token in the short or the long form; empty for anything else."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else ""


def _from_file(
    path: Path, ids: Mapping[str, Any], special: Collection[str]
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
                f"{path}: {DECODER}: {number!r}: {entry!r} is not an id and its token", _AGAIN
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
