"""Loading tokenizers: a Hugging Face folder, or the bare vocabulary of a WordPiece or a GPT-2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.text.file_kinds import refuse_lfs_pointer
from pretune.tokenizers.added_tokens import ADDED_FILE, add_listed, add_named, named_token
from pretune.tokenizers.classes import (
    END_OF_TEXT,
    GPT2,
    INPUTS,
    PLAIN,
    UNCASED,
    WORDPIECE,
    base_name,
    builds,
    class_of_model,
    gives_segments,
    suits,
    usual_tokens,
)
from pretune.tokenizers.engines import (
    bert_normalizer,
    byte_level_engine,
    drop_segments,
    frame_as_bert,
    frame_with_ends,
    wordpiece_engine,
)
from pretune.tokenizers.growth import refuse_growth
from pretune.tokenizers.tokenizer import (
    DECODER,
    SPECIAL_NAMES,
    TARGET_FILE,
    TARGET_KEY,
    Tokenizer,
    is_panic,
)

#: Special tokens of a vocabulary that has them, where no file names any: the published GPT-2 has
#: `tokenizer.json`, but no file that names its end of text.
_USUAL = {**usual_tokens(GPT2), **usual_tokens("BertTokenizer")}
#: A folder with named chat templates, a file each.
_TEMPLATES = "additional_chat_templates"
#: A checkpoint of ours has this file (see bundle/task_file.py).
_OURS = "pretune.json"


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
    if templates := _template_files(folder):
        settings["chat_template"] = templates
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
    refuse_lfs_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error})", "Copy the file again.") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror})", "Check its owner and mode."
        ) from None


def _template_files(folder: Path) -> str | list[dict[str, str]]:
    """The chat templates in files of their own, where newer transformers write them."""
    files = {path.stem: path for path in sorted((folder / _TEMPLATES).glob("*.jinja"))}
    if (default := folder / "chat_template.jinja").is_file():
        files["default"] = default
    if [*files] == ["default"]:
        return _read_text(files["default"])
    return [{"name": name, "template": _read_text(path)} for name, path in files.items()]


def _described(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the special tokens of `special_tokens_map.json`.

    As in transformers, that file is of no account where the settings list the added tokens.
    """
    named = _read_json(folder / "special_tokens_map.json")
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


def _from_json(path: Path, settings: dict[str, Any]) -> Tokenizer:
    try:
        engine = RustTokenizer.from_file(str(path))
    except BaseException as error:  # the Rust side raises a bare Exception, or panics
        if type(error) is not Exception and not is_panic(error):
            raise
        refuse_lfs_pointer(path)
        raise CheckpointError(
            f"{path}: not a tokenizer.json that can be read ({error})",
            "Copy the file again, or remove it if there is a vocab.txt beside it.",
        ) from None
    parts = _read_json(path)
    refuse_growth(path, engine)
    folder, model = path.parent, engine.model
    kind, stated = _class_of(folder, settings)
    # Some classes take the vocabulary alone from the file, and the rest from the settings.
    fits = suits(kind, model)
    if stated and not fits:
        raise CheckpointError(
            f"{path}: a {type(model).__name__}, but the settings beside it say that it is of a "
            f"{kind}",
            "They do not belong together: copy both from one place. If tokenizer.json is right, "
            f'write "tokenizer_class": "{PLAIN}" into tokenizer_config.json.',
        )
    tokens = parts["added_tokens"]
    if (folder / _OURS).is_file():
        # An earlier version of ours left a list in the settings that lacked its own new tokens.
        settings.pop(DECODER, None)
        # It also kept settings that the file did not follow, and trained with the file.
        if stated and not builds(kind, settings, engine):
            raise CheckpointError(
                f"{path}: the settings beside it ask for another tokenizer than this file has",
                f'With "tokenizer_class": "{PLAIN}" in tokenizer_config.json the file counts, as '
                "in earlier versions, which trained with it.",
            )
    if kind in WORDPIECE and fits:
        lowercase = _flag(path, settings, "do_lower_case") is not False
        vocabulary = engine.get_vocab(with_added_tokens=False)
        return _wordpiece(path, vocabulary, settings, kind, lowercase, tokens)
    if kind == GPT2 and fits:
        merges = [m.split(" ") if isinstance(m, str) else m for m in parts["model"]["merges"]]
        vocabulary = engine.get_vocab(with_added_tokens=False)
        made = _byte_level(path, vocabulary, [(a, b) for a, b in merges], settings, tokens)
        if engine.post_processor is not None:
            made.engine.post_processor = engine.post_processor
        return _finished(made, folder, kind)
    # Any other is complete; files beside it may list more tokens, and must not contradict it.
    described, usual = _described(folder, settings), usual_tokens(kind)
    if fits and not builds(kind, described, engine):
        raise CheckpointError(
            f"{path}: transformers builds a {kind} by other rules than those in this file, so its "
            "ids may differ",
            "Save it again with transformers (AutoTokenizer.from_pretrained(FOLDER)"
            '.save_pretrained(FOLDER)) and take that file with "tokenizer_class": '
            f'"{PLAIN}" in tokenizer_config.json, by which tokenizer.json is read as it is.',
        )
    add_listed(engine, folder, described, others=_read_json(folder / ADDED_FILE), own=())
    add_named(engine, described, usual)
    special = special_tokens(engine, {**usual, **described})
    return _finished(Tokenizer(engine, special, settings, origin=path), folder, kind)


def _class_of(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The class of a folder's tokenizer, and whether a file names it or only the model's kind."""
    config = _read_json(folder / "config.json")
    stated = base_name(settings.get("tokenizer_class", config.get("tokenizer_class")))
    return stated or class_of_model(config), stated is not None


def _finished(tokenizer: Tokenizer, folder: Path, kind: str | None) -> Tokenizer:
    """Let a tokenizer tell segments, and read special tokens as text, as its settings say."""
    settings = tokenizer.settings
    names = settings.get(INPUTS)
    # Without settings or a known class, the file alone decides. A checkpoint of ours that lists no
    # inputs is from before they were written: it was trained with the segments of the file.
    decided = names is not None or (kind is not None and not (folder / _OURS).is_file())
    if decided and not gives_segments(kind, names):
        drop_segments(tokenizer.engine)
    tokenizer.engine.encode_special_tokens = settings.get("split_special_tokens") is True
    return tokenizer


def _flag(path: Path, settings: dict[str, Any], name: str) -> bool | None:
    value = settings.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CheckpointError(
        f"{path.parent / 'tokenizer_config.json'}: {name} must be true or false, not {value!r}",
        "Repair it there.",
    )


def _of_another_class(folder: Path, files: str, kind: str | None, readable: str) -> CheckpointError:
    """The error for bare files of a class whose conventions are not ours."""
    return CheckpointError(
        f"{folder}: {files} of a {kind}, but without tokenizer.json only those of a {readable} can "
        "be read",
        "Write tokenizer.json with transformers, if it has a fast version of that class: "
        "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
    )


def _from_vocabulary(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    kind, stated = _class_of(path.parent, settings)
    if stated and kind not in WORDPIECE:
        raise _of_another_class(path.parent, f"{path.name} is", kind, "BertTokenizer")
    lines = _read_text(path).removesuffix("\n").split("\n")
    vocabulary = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    # Whether it is uncased: as asked, as the settings say, or as the words of the vocabulary are.
    if lowercase is None:
        lowercase = _flag(path, settings, "do_lower_case")
    if lowercase is None:
        # Only words count: not [CLS], nor <S> and <T> in the uncased Chinese vocabulary.
        words = (token for token in vocabulary if token.removeprefix("##").isalpha())
        lowercase = all(word == word.lower() for word in words)
    kind = kind if kind in WORDPIECE else "BertTokenizer"
    return _wordpiece(path, vocabulary, settings, kind, lowercase, None)


def _wordpiece(
    path: Path,
    vocabulary: Mapping[str, int],
    settings: dict[str, Any],
    kind: str,
    lowercase: bool,
    tokens: Sequence[Mapping[str, Any]] | None,
) -> Tokenizer:
    """BERT's tokenizer with a vocabulary, as the settings beside it say; `tokens` as `add_listed`'s
    `own`."""
    folder, usual = path.parent, usual_tokens(kind)
    lowercase = lowercase or kind in UNCASED
    described = _described(folder, settings)
    unknown = named_token(described, "unk_token", usual)
    engine = wordpiece_engine(
        vocabulary,
        bert_normalizer(
            lowercase,
            chinese=_flag(path, settings, "tokenize_chinese_chars") is not False,
            strip_accents=_flag(path, settings, "strip_accents"),
        ),
        unknown,
    )
    # The tokens that are needed: unknown words must be in the vocabulary itself.
    add_listed(engine, folder, described, others=_read_json(folder / ADDED_FILE), own=tokens)
    begin, end = (named_token(described, f"{name}_token", usual) for name in ("cls", "sep"))
    known = engine.get_vocab(with_added_tokens=True)
    missing = [unknown] * (unknown not in vocabulary)
    missing += [token for token in (begin, end) if token not in known]
    if missing:
        raise CheckpointError(
            f"{path}: not a BERT vocabulary: no line {' or '.join(missing)}",
            "A WordPiece vocab.txt has one token a line, among them [PAD], [UNK], [CLS], [SEP] and "
            "[MASK].",
        )
    add_named(engine, described, usual)
    frame_as_bert(engine, begin, end)
    settings = {"tokenizer_class": kind, **settings, "do_lower_case": lowercase}
    special = special_tokens(engine, described)
    return _finished(Tokenizer(engine, special, settings, origin=path), folder, kind)


def _from_merges(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    path = folder / "vocab.json"
    vocabulary = _read_json(path)
    # RoBERTa has files of the same names and layout, but its texts begin with <s>. Where no setting
    # names the class, its tokens do.
    kind, stated = _class_of(folder, settings)
    if not stated and {"<s>", "<mask>"} <= {*vocabulary}:
        kind, stated = "RobertaTokenizer", True
    if stated and kind != GPT2:
        raise _of_another_class(folder, "vocab.json and merges.txt are", kind, GPT2)
    merges = _read_merges(folder / "merges.txt")
    tokenizer = _byte_level(path, vocabulary, merges, settings, None)
    # Only here do the settings say what is around a text: tokenizer.json has it itself.
    ends = [
        tokenizer.special.get(f"{name}_token")
        if _flag(path, settings, f"add_{name}_token")
        else None
        for name in ("bos", "eos")
    ]
    if any(ends):
        frame_with_ends(tokenizer.engine, *ends)
    return _finished(tokenizer, folder, GPT2)


def _byte_level(
    path: Path,
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    settings: dict[str, Any],
    tokens: Sequence[Mapping[str, Any]] | None,
) -> Tokenizer:
    """GPT-2's tokenizer with a vocabulary; the rest as for `_wordpiece`."""
    folder = path.parent
    prefix_space = _flag(path, settings, "add_prefix_space") is True
    try:
        engine = byte_level_engine(vocabulary, merges, prefix_space=prefix_space)
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(
            f"{path}: no vocabulary for the merges beside it ({error})", "Copy both again."
        ) from None
    described = _described(folder, settings)
    add_listed(engine, folder, described, others=_read_json(folder / ADDED_FILE), own=tokens)
    add_named(engine, described, {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
    defaults = {"tokenizer_class": GPT2, "add_prefix_space": prefix_space}
    special = special_tokens(engine, described)
    return Tokenizer(engine, special, {**defaults, **settings}, origin=path)


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
