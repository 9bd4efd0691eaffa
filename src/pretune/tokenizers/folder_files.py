"""What the files of a folder say about its tokenizer, and what a class makes of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.text.file_kinds import refuse_lfs_pointer
from pretune.tokenizers.added_tokens import ADDED_FILE, add_listed, add_named
from pretune.tokenizers.class_rules import CLASS_RULES, GPT2, MissingTokenError
from pretune.tokenizers.classes import (
    ENDS,
    INPUTS,
    class_engine,
    class_of,
    gives_segments,
    usual_tokens,
)
from pretune.tokenizers.engines import drop_segments
from pretune.tokenizers.tokenizer import DECODER, SPECIAL_NAMES, Tokenizer

#: Special tokens of a vocabulary that has them, where no file names any: the published GPT-2 has
#: `tokenizer.json`, but no file that names its end of text.
_USUAL = {**usual_tokens(GPT2), **usual_tokens("BertTokenizer")}
#: A checkpoint of ours has this file (see bundle/task_file.py).
OURS = "pretune.json"


def read_object_file(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "Copy the file again.")
    return value


def read_text_file(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    refuse_lfs_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error})", "Copy the file again.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None


def described_settings(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the special tokens of `special_tokens_map.json`.

    As in transformers, that file is of no account where the settings list the added tokens.
    """
    named = read_object_file(folder / "special_tokens_map.json")
    return settings if settings.get(DECODER) is not None else {**settings, **named}


def special_tokens(engine: RustTokenizer, settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens of a vocabulary by name: from its settings, or else the usual ones."""
    special = {}
    for name in SPECIAL_NAMES:
        token = settings.get(name, _USUAL.get(name))
        if isinstance(token, dict):  # the long form: {"content": "[CLS]", "lstrip": false, ...}
            token = token.get("content")
        if isinstance(token, str) and engine.token_to_id(token) is not None:
            special[name] = token
    return special


def of_class(
    path: Path,
    engine: RustTokenizer,
    settings: dict[str, Any],
    kind: str | None,
    tokens: Sequence[Mapping[str, Any]] | None,
    symbols: list[Any] | None = None,
) -> Tokenizer:
    """Build what a class of transformers makes of the files of a folder.

    Args:
        path: of the file with the vocabulary.
        engine: with the vocabulary.
        settings: the content of `tokenizer_config.json`.
        kind: the class, one of `CLASS_RULES`.
        tokens: `added_tokens` of a `tokenizer.json`; None where there is none.
        symbols: control symbols and user-defined ones of a SentencePiece file; None for others.

    Raises:
        CheckpointError: a token that stands around texts is missing, or a list is malformed.
    """
    folder, rules, usual = path.parent, CLASS_RULES[kind], usual_tokens(kind)
    described = described_settings(folder, settings)
    if tokens is not None:  # what stands around a text is in the file
        described = {key: value for key, value in described.items() if key not in ENDS}
    completed = {**usual, **rules.complete(described, symbols)}
    made = class_engine(kind, completed, engine)
    unknown = getattr(made.model, "unk_token", None)
    if unknown is not None and made.token_to_id(unknown) is None:
        raise CheckpointError(
            f"{path}: a {kind} needs its unknown token in the vocabulary, which has no {unknown}",
            "Name the right unk_token in tokenizer_config.json, or copy the folder again.",
        )
    others = read_object_file(folder / ADDED_FILE)
    add_listed(made, folder, described, others=others, own=tokens)
    add_named(made, completed, usual)
    try:
        made.post_processor = rules.frame(completed, made, engine.post_processor)
    except MissingTokenError as error:
        raise CheckpointError(
            f"{path}: a {kind} puts {error} around texts, but there is no such token here",
            "Name the right tokens in tokenizer_config.json (bos_token, eos_token, cls_token, "
            "sep_token), or copy the folder again.",
        ) from None
    special = special_tokens(made, {**dict.fromkeys(SPECIAL_NAMES), **completed})
    settings = {**settings, "tokenizer_class": kind}
    return finished(Tokenizer(made, special, settings, origin=path), folder, kind)


def class_of_folder(
    folder: Path, settings: Mapping[str, Any], file: Path | None = None
) -> tuple[str | None, bool]:
    """The class of a folder's tokenizer, and whether a file names it or only the model's kind."""
    byte_level = file is not None and b'"ByteLevel"' in file.read_bytes()
    return class_of(settings, read_object_file(folder / "config.json"), byte_level=byte_level)


def finished(tokenizer: Tokenizer, folder: Path, kind: str | None) -> Tokenizer:
    """Let a tokenizer tell segments, and read special tokens as text, as its settings say."""
    settings = tokenizer.settings
    names = settings.get(INPUTS)
    # Without settings or a known class, the file alone decides. A checkpoint of ours that lists no
    # inputs is from before they were written: it was trained with the segments of the file.
    decided = names is not None or (kind is not None and not (folder / OURS).is_file())
    if decided and not gives_segments(kind, names):
        drop_segments(tokenizer.engine)
    tokenizer.engine.encode_special_tokens = settings.get("split_special_tokens") is True
    return tokenizer


def of_another_class(
    folder: Path, files: str, kind: str | None, readable: Collection[str]
) -> CheckpointError:
    """The error for bare files of a class whose conventions are not ours."""
    *some, last = sorted(readable)
    return CheckpointError(
        f"{folder}: {files} of a {kind}, but without tokenizer.json only those of a "
        f"{', '.join(some)}{' or ' * bool(some)}{last} can be read",
        "Write tokenizer.json with transformers, if it has a fast version of that class: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )
