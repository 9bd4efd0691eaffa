"""Loading tokenizers: a Hugging Face folder, or the bare vocabulary of a WordPiece or a GPT-2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.added_tokens import ADDED_FILE, add_listed
from pretune.tokenizers.engines import bert_normalizer, byte_level_engine, wordpiece_engine
from pretune.tokenizers.tokenizer import SPECIAL_NAMES, TARGET_FILE, TARGET_KEY, Tokenizer

END_OF_TEXT = "<|endoftext|>"
_GPT2 = "GPT2Tokenizer"
#: Special tokens of a vocabulary that has them, where no file names any: the published GPT-2 has
#: `tokenizer.json`, but no file that names its end of text.
_USUAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
}


def load_tokenizer(source: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: a folder with `tokenizer.json`, `vocab.txt`, or `vocab.json` and `merges.txt`; or
            one of the first two files.
        lowercase: whether the model is uncased, for a bare `vocab.txt` only. Default:
            `do_lower_case` in the `tokenizer_config.json` beside it; without one, uncased unless
            the vocabulary has words with capital letters.

    Raises:
        CheckpointError: there is no tokenizer, or it is damaged; names the file.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    settings = _read_json(folder / "tokenizer_config.json")
    if (template := folder / "chat_template.jinja").is_file():  # where newer transformers write it
        settings["chat_template"] = _read_text(template)
    tokenizer = _load(path, settings, lowercase)
    # A translator with two vocabularies has a second tokenizer, for the texts it writes.
    target = folder / TARGET_FILE
    if path.is_dir() and target.is_file():
        tokenizer.target = _from_json(target, {})
    elif path.is_dir() and TARGET_KEY in settings:
        # With the vocabulary of its source language, it would write nonsense.
        raise CheckpointError(
            f"{target}: missing, but tokenizer_config.json names it",
            "Copy the folder again, with all of its files.",
        )
    return tokenizer


def _load(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    # A file is named: it decides.
    if path.is_file():
        if path.suffix == ".json":
            return _from_json(path, settings)
        return _from_vocabulary(path, settings, lowercase)
    # tokenizer.json is complete; the other files leave details to their model's conventions.
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json", settings)
    if (path / "vocab.txt").is_file():
        return _from_vocabulary(path / "vocab.txt", settings, lowercase)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_merges(path, settings)
    raise CheckpointError(
        f"{path}: no tokenizer here",
        "Expected tokenizer.json (Hugging Face layout), vocab.txt (WordPiece), or vocab.json and "
        "merges.txt (GPT-2) in that folder.",
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})", "Copy the file again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object", "Copy the file again.")
    return value


def _read_text(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error})", "Copy the file again.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None


def _with_special_map(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {**_read_json(folder / "special_tokens_map.json"), **settings}


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


def _from_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    try:
        engine = RustTokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(
            f"{path}: not a tokenizer.json that can be read ({error})",
            "Copy the file again, or remove it if there is a vocab.txt beside it.",
        ) from None
    special = special_tokens(engine, _with_special_map(path.parent, settings))
    return Tokenizer(engine, special, settings)


def _with_listed_tokens(
    engine: RustTokenizer, folder: Path, settings: dict[str, Any], defaults: dict[str, Any]
) -> Tokenizer:
    """Finish a tokenizer from bare files: add the tokens that the files beside them list."""
    described = _with_special_map(folder, settings)
    add_listed(engine, folder, _read_json(folder / ADDED_FILE), described)
    special = special_tokens(engine, described)
    engine.add_special_tokens(list(special.values()))
    return Tokenizer(engine, special, {**defaults, **settings})


def _flag(path: Path, settings: dict[str, Any], name: str) -> bool | None:
    value = settings.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CheckpointError(
        f"{path.parent / 'tokenizer_config.json'}: {name} must be true or false, not {value!r}",
        "Repair it there.",
    )


def _from_vocabulary(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    lines = _read_text(path).removesuffix("\n").split("\n")
    vocabulary = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{path}: not a BERT vocabulary: no line {' or '.join(missing)}",
            "A WordPiece vocab.txt has one token a line, among them [PAD], [UNK], [CLS], [SEP] and "
            "[MASK].",
        )
    # Whether it is uncased: as asked, as the settings say, or as the words of the vocabulary are.
    if lowercase is None:
        lowercase = _flag(path, settings, "do_lower_case")
    if lowercase is None:
        # Only words count: not [CLS], nor <S> and <T> in the uncased Chinese vocabulary.
        words = (token for token in vocabulary if token.removeprefix("##").isalpha())
        lowercase = all(word == word.lower() for word in words)
    engine = wordpiece_engine(
        vocabulary,
        bert_normalizer(
            lowercase,
            chinese=_flag(path, settings, "tokenize_chinese_chars") is not False,
            strip_accents=_flag(path, settings, "strip_accents"),
        ),
    )
    defaults = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
    return _with_listed_tokens(engine, path.parent, settings, defaults)


def _from_merges(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    path = folder / "vocab.json"
    vocabulary = _read_json(path)
    # RoBERTa has files of the same names and layout, but its texts begin with <s>. Where no setting
    # names the class, its tokens do.
    usual = "RobertaTokenizer" if {"<s>", "<mask>"} <= {*vocabulary} else _GPT2
    kind = settings.get("tokenizer_class", usual)
    if kind not in (_GPT2, f"{_GPT2}Fast"):
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt are of a {kind}, but without tokenizer.json only "
            f"those of a {_GPT2} can be read",
            "Write tokenizer.json with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    merges = _read_merges(folder / "merges.txt")
    prefix_space = _flag(path, settings, "add_prefix_space") is True
    try:
        engine = byte_level_engine(vocabulary, merges, prefix_space=prefix_space)
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(
            f"{path}: no vocabulary for the merges.txt beside it ({error})", "Copy both again."
        ) from None
    defaults = {"tokenizer_class": _GPT2, "add_prefix_space": prefix_space}
    return _with_listed_tokens(engine, folder, settings, defaults)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line or line.startswith("#version"):
            continue
        # A token has no space in it: GPT-2 writes the byte of the space as U+0120.
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise CheckpointError(
                f"{path}, line {number}: expected two tokens with a space between, found "
                f"{line[:40]!r}",
                "Copy the file again.",
            )
        merges.append((left, right))
    return merges
