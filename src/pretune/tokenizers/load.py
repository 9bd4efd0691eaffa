"""Loading tokenizers: a Hugging Face folder, or the bare vocabulary of a WordPiece or a GPT-2."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from pretune.errors import CheckpointError
from pretune.text.file_kinds import refuse_lfs_pointer
from pretune.tokenizers.added_tokens import ADDED_FILE, add_listed, add_named, named_token
from pretune.tokenizers.class_rules import (
    CLASS_RULES,
    END_OF_TEXT,
    GPT2,
    ROBERTA,
    UNCASED,
    WORDPIECE,
)
from pretune.tokenizers.classes import builds, suits, unreadable, usual_tokens
from pretune.tokenizers.engines import (
    bert_normalizer,
    byte_level_engine,
    ends_processor,
    frame_as_bert,
    wordpiece_engine,
)
from pretune.tokenizers.folder_files import (
    OURS,
    class_of_folder,
    described_settings,
    finished,
    of_another_class,
    of_class,
    read_object_file,
    read_text_file,
    special_tokens,
)
from pretune.tokenizers.growth import refuse_growth
from pretune.tokenizers.model_types import MARIAN, MARIAN_FILES, PIECES, PLAIN
from pretune.tokenizers.tokenizer import (
    DECODER,
    TARGET_FILE,
    TARGET_KEY,
    Tokenizer,
    is_panic,
)

#: Files with a vocabulary; SentencePiece's end in `PIECES`.
_VOCABULARIES = frozenset(("tokenizer.json", "vocab.txt", "merges.txt"))
#: A folder with named chat templates, a file each.
_TEMPLATES = "additional_chat_templates"
#: The classes whose bare `vocab.json` and `merges.txt` are read.
_FROM_MERGES = frozenset((GPT2, "Qwen2Tokenizer", *ROBERTA))


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a folder has a file that a tokenizer is read from, be it damaged or not."""
    if not os.path.isdir(folder):  # a Path raises an error if a name is too long
        return False
    return any(n in _VOCABULARIES or n.endswith(PIECES) for n in os.listdir(folder))


def load_tokenizer(source: str | Path, *, lowercase: bool | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        source: a folder with `tokenizer.json`, `vocab.txt`, `vocab.json` and `merges.txt`, or the
            SentencePiece file of its class; or one of these files, but for the last two.
        lowercase: whether the model is uncased, for a bare `vocab.txt` only. Default:
            `do_lower_case` in the `tokenizer_config.json` beside it; without one, uncased unless
            the vocabulary has words with capital letters.

    Raises:
        CheckpointError: there is no tokenizer, or it is damaged; names the file.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    settings = read_object_file(folder / "tokenizer_config.json")
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
    kind, _ = class_of_folder(path, settings) if path.is_dir() else (None, False)
    if kind in (MARIAN, None) and all((path / name).is_file() for name in MARIAN_FILES):
        from pretune.tokenizers.marian import load_marian  # which few need

        return load_marian(
            path, described_settings(path, settings), read_object_file(path / ADDED_FILE)
        )
    # A file is named: it decides.
    if path.is_file():
        if path.suffix == ".json":
            return _from_json(path, settings)
        if path.suffix in PIECES:
            return _from_pieces(path, settings)
        return _from_vocabulary(path, settings, lowercase)
    # tokenizer.json is complete; the other files leave details to their model's conventions.
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json", settings)
    if (path / "vocab.txt").is_file():
        return _from_vocabulary(path / "vocab.txt", settings, lowercase)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_merges(path, settings)
    if any(file.suffix in PIECES for file in path.glob("*")):
        return _from_pieces(path, settings)
    raise CheckpointError(
        f"{path}: no tokenizer here",
        "Expected tokenizer.json (Hugging Face layout), vocab.txt (WordPiece), vocab.json and "
        "merges.txt (GPT-2), or a SentencePiece file (.model, .spm) in that folder.",
    )


def _from_pieces(path: Path, settings: dict[str, Any]) -> Tokenizer:
    from pretune.tokenizers.from_pieces import from_pieces, pieces_in  # which few need

    return from_pieces(pieces_in(path, settings) if path.is_dir() else path, settings)


def _template_files(folder: Path) -> str | list[dict[str, str]]:
    """The chat templates in files of their own, where newer transformers write them."""
    files = {path.stem: path for path in sorted((folder / _TEMPLATES).glob("*.jinja"))}
    if (default := folder / "chat_template.jinja").is_file():
        files["default"] = default
    if [*files] == ["default"]:
        return read_text_file(files["default"])
    return [{"name": name, "template": read_text_file(path)} for name, path in files.items()]


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
    parts = read_object_file(path)
    refuse_growth(path, engine)
    folder, model = path.parent, engine.model
    kind, stated = class_of_folder(folder, settings, path)
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
    if (folder / OURS).is_file():
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
        return finished(made, folder, kind)
    if kind in CLASS_RULES and fits:
        return of_class(path, engine, settings, kind, tokens)
    return _as_it_is(path, engine, settings, kind, tokens)


def _as_it_is(
    path: Path,
    engine: RustTokenizer,
    settings: dict[str, Any],
    kind: str | None,
    tokens: Sequence[Mapping[str, Any]],
) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` that says everything; files beside it may list more
    tokens."""
    folder = path.parent
    if unreadable(kind):
        raise CheckpointError(
            f"{path}: transformers builds a {kind} by other rules than those in this file, so its "
            "ids may differ",
            "Save it again with transformers (AutoTokenizer.from_pretrained(FOLDER)"
            '.save_pretrained(FOLDER)) and take that file with "tokenizer_class": '
            f'"{PLAIN}" in tokenizer_config.json, by which tokenizer.json is read as it is.',
        )
    if settings.get("fix_mistral_regex") is True:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: fix_mistral_regex: the pattern for words in "
            "tokenizer.json would be replaced by another one, which is not done here",
            "Save it with transformers, which writes the new pattern, and set it to false.",
        )
    described, usual = described_settings(folder, settings), usual_tokens(kind)
    add_listed(engine, folder, described, others=read_object_file(folder / ADDED_FILE), own=())
    add_named(engine, described, usual)
    special = special_tokens(engine, {**usual, **described})
    if kind == PLAIN:
        settings = {**settings, "tokenizer_class": PLAIN}
    return finished(Tokenizer(engine, special, settings, origin=path), folder, kind)


def _flag(path: Path, settings: dict[str, Any], name: str) -> bool | None:
    value = settings.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise CheckpointError(
        f"{path.parent / 'tokenizer_config.json'}: {name} must be true or false, not {value!r}",
        "Repair it there.",
    )


def _from_vocabulary(path: Path, settings: dict[str, Any], lowercase: bool | None) -> Tokenizer:
    kind, stated = class_of_folder(path.parent, settings)
    if stated and kind not in WORDPIECE:
        raise of_another_class(path.parent, f"{path.name} is", kind, ("BertTokenizer",))
    lines = read_text_file(path).removesuffix("\n").split("\n")
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
    described = described_settings(folder, settings)
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
    add_listed(engine, folder, described, others=read_object_file(folder / ADDED_FILE), own=tokens)
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
    return finished(Tokenizer(engine, special, settings, origin=path), folder, kind)


def _from_merges(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    path = folder / "vocab.json"
    vocabulary, merges = read_object_file(path), _read_merges(folder / "merges.txt")
    # RoBERTa has files of the same names and layout, but its texts begin with <s>. Where no setting
    # names the class, its tokens do.
    kind, _ = class_of_folder(folder, settings)
    if kind is None and {"<s>", "<mask>"} <= {*vocabulary}:
        kind = "RobertaTokenizer"
    if kind is not None and kind not in _FROM_MERGES:
        raise of_another_class(folder, "vocab.json and merges.txt are", kind, _FROM_MERGES)
    if kind is not None and kind != GPT2:
        engine = _bytes_engine(path, vocabulary, merges)
        engine.post_processor = None  # that of the class
        return of_class(path, engine, settings, kind, None)
    tokenizer = _byte_level(path, vocabulary, merges, settings, None)
    # Only here do the settings say what is around a text: tokenizer.json has it itself.
    ends = [
        tokenizer.special.get(f"{name}_token")
        if _flag(path, settings, f"add_{name}_token")
        else None
        for name in ("bos", "eos")
    ]
    if any(ends):
        tokenizer.engine.post_processor = ends_processor(tokenizer.engine, *ends)
    return finished(tokenizer, folder, GPT2)


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
    engine = _bytes_engine(path, vocabulary, merges, prefix_space=prefix_space)
    described = described_settings(folder, settings)
    add_listed(engine, folder, described, others=read_object_file(folder / ADDED_FILE), own=tokens)
    add_named(engine, described, {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
    defaults = {"tokenizer_class": GPT2, "add_prefix_space": prefix_space}
    special = special_tokens(engine, described)
    return Tokenizer(engine, special, {**defaults, **settings}, origin=path)


def _bytes_engine(
    path: Path,
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    *,
    prefix_space: bool = False,
) -> RustTokenizer:
    try:
        return byte_level_engine(vocabulary, merges, prefix_space=prefix_space)
    except Exception as error:  # the Rust side raises a bare Exception
        raise CheckpointError(
            f"{path}: no vocabulary for the merges beside it ({error})", "Copy both again."
        ) from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    merges = []
    for number, line in enumerate(read_text_file(path).split("\n"), start=1):
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
