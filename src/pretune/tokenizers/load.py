"""Loading tokenizers: a Hugging Face folder, or a bare vocabulary of WordPiece or of GPT-2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.tokenizers.added_tokens import ADDED_FILE, add_noted
from pretune.tokenizers.engines import bert_normalizer, byte_level_engine, wordpiece_engine
from pretune.tokenizers.tokenizer import SPECIAL_NAMES, TARGET_FILE, TARGET_KEY, Tokenizer

BERT_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
END_OF_TEXT = "<|endoftext|>"
_GPT2 = "GPT2Tokenizer"
#: What a vocabulary that has them means by them, where no file says so: the published GPT-2 has
#: `tokenizer.json`, and no file that names its end of text.
_USUAL = {**BERT_SPECIAL, "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}


def load_tokenizer(source: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: a folder with `tokenizer.json`, `vocab.txt`, or `vocab.json` and `merges.txt`; or
            one of the first two files.
        lowercase: for a bare `vocab.txt` only: whether the model is uncased. Default: what
            `tokenizer_config.json` beside it says (`do_lower_case`); without one, uncased unless
            the vocabulary itself has words with capital letters.

    Raises:
        CheckpointError: nothing there that could be read as a tokenizer.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    settings = _read_json(folder / "tokenizer_config.json")
    if (template := folder / "chat_template.jinja").is_file():  # where newer transformers write it
        settings["chat_template"] = _read_text(template)
    found = _load(path, settings, lowercase)
    target = folder / TARGET_FILE
    if path.is_dir() and target.is_file():
        found.target = _from_json(target, {})
    elif path.is_dir() and TARGET_KEY in settings:
        # With the vocabulary of what is read, a translator would write nothing but nonsense.
        raise CheckpointError(
            f"{target}: missing, and tokenizer_config.json says that it is there",
            "Copy the folder again, with all of its files.",
        )
    return found


def _load(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    if path.is_file():
        if path.suffix == ".json":
            return _from_json(path, settings)
        return _from_vocabulary(path, settings, lowercase)
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
    """The text of a file, without the mark that some programs put before the first character."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error})", "Copy the file again.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None


def _said(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the files say about special tokens."""
    return {**_read_json(folder / "special_tokens_map.json"), **settings}


def special_tokens(engine: RustTokenizer, said: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by name: as is said, else the usual ones that the vocabulary has."""
    special = {}
    for name in SPECIAL_NAMES:
        token = said.get(name, _USUAL.get(name))
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
            "Copy the file again, or remove it if a vocab.txt stands beside it.",
        ) from None
    return Tokenizer(engine, special_tokens(engine, _said(path.parent, settings)), settings)


def _read_vocabulary(path: Path) -> dict[str, int]:
    lines = _read_text(path).split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    vocabulary = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
    if missing:
        raise CheckpointError(
            f"{path}: not a BERT vocabulary: no line {' or '.join(missing)}",
            "A WordPiece vocab.txt has one token a line, among them [PAD], [UNK], [CLS], [SEP] and "
            "[MASK].",
        )
    return vocabulary


def _flag(path: Path, settings: dict[str, Any], name: str) -> bool | None:
    value = settings.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CheckpointError(
        f"{path.parent / 'tokenizer_config.json'}: {name} must be true or false, not {value!r}",
        "Repair it there.",
    )


def _from_vocabulary(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    vocabulary = _read_vocabulary(path)
    if lowercase is None:
        lowercase = _flag(path, settings, "do_lower_case")
    if lowercase is None:
        # Words only: [CLS] says nothing, nor do the <S> and <T> of the uncased Chinese vocabulary.
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
    said = _said(path.parent, settings)
    add_noted(engine, path.parent, _read_json(path.parent / ADDED_FILE), said)
    special = special_tokens(engine, said)
    engine.add_special_tokens(list(special.values()))
    settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer", **settings}
    return Tokenizer(engine, special, settings)


def _from_merges(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """GPT-2's two files: byte-level BPE."""
    path = folder / "vocab.json"
    vocabulary = _read_json(path)
    # RoBERTa's files are named and made alike, but its texts begin with <s>: where nothing says
    # whose they are, its tokens do.
    usual = "RobertaTokenizer" if {"<s>", "<mask>"} <= {*vocabulary} else _GPT2
    kind = settings.get("tokenizer_class", usual)
    if kind not in (_GPT2, f"{_GPT2}Fast"):
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt are of a {kind}, and without tokenizer.json only "
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
    said = _said(folder, settings)
    add_noted(engine, folder, _read_json(folder / ADDED_FILE), said)
    special = special_tokens(engine, said)
    engine.add_special_tokens(list(special.values()))
    settings = {"tokenizer_class": _GPT2, "add_prefix_space": prefix_space, **settings}
    return Tokenizer(engine, special, settings)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line or line.startswith("#version"):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise CheckpointError(
                f"{path}, line {number}: expected two tokens with a space between, found "
                f"{line[:40]!r}",
                "Copy the file again.",
            )
        merges.append((left, right))
    return merges
