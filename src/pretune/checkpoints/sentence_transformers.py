"""What the files of sentence-transformers say of a model's vectors: pooling, length, prompts.

Such a folder has `modules.json`, which lists the modules that a text goes through: a Transformer,
whose files lie in the folder itself or in one such as `0_Transformer`, a Pooling, and mostly a
Normalize. Everything here is read as sentence-transformers 6.2 reads it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from pretune.checkpoints.config import read_json, read_object
from pretune.errors import CheckpointError, describe_value
from pretune.models.config import brief

T = TypeVar("T")

MODULES = "modules.json"
GENERAL = "config_sentence_transformers.json"
#: Where older versions put the settings of a Transformer, the usual place first.
_TRANSFORMER = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: Patterns of all of these files, wherever in a repository they lie, beside each `config.json`.
SETTINGS = (MODULES, GENERAL, "*sentence_*_config.json", "*/config.json")

#: transformers writes about 1e30 where a tokenizer has no limit.
_NO_LIMIT = 10**9
#: Their names of poolings, in the order of the older keys -> the older key, and our name or None.
_POOLINGS: dict[str, tuple[str, str | None]] = {
    "cls": ("pooling_mode_cls_token", "cls"),
    "max": ("pooling_mode_max_tokens", "max"),
    "mean": ("pooling_mode_mean_tokens", "mean"),
    "mean_sqrt_len_tokens": ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weightedmean": ("pooling_mode_weightedmean_tokens", None),
    "lasttoken": ("pooling_mode_lasttoken", "last"),
}
#: Ways to compare two vectors; larger is nearer.
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
#: Settings of a Transformer that we do not follow -> the value at which they change nothing.
_FIXED: dict[str, Any] = {
    "transformer_task": "feature-extraction",
    "processing_kwargs": {},
    "query_length": None,
    "document_length": None,
    "query_expansion": None,
    "config_args": {},
    "config_kwargs": {},
    "model_args": {},
    "model_kwargs": {},
    "tokenizer_args": {},
    "processor_kwargs": {},
}
#: Entries of those that change no vector: they are about code, files, padding, or read here.
_HARMLESS = {"trust_remote_code", "use_fast", "padding_side", "model_max_length", "use_cache"}
_HARMLESS |= {"attn_implementation", "add_pooling_layer", "low_cpu_mem_usage", "device_map"}
#: Names of the precision of the weights.
_PRECISIONS = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class EmbeddingSettings:
    """What a folder of sentence-transformers says of its vectors."""

    source: str  # the folder of `modules.json`
    pooling: str | None  # our name of it; None where `unsupported` says why
    include_prompt: bool  # whether the tokens of a prompt are pooled too
    normalize: bool  # whether vectors get length 1
    max_length: int | None  # most tokens of a text, special ones too; None: all positions
    size: int | None  # only so many first numbers of a vector are kept; None: all
    lowercase: bool  # whether texts are lower-cased before the tokenizer reads them
    prompts: Mapping[str, str]  # what comes before a text, by name
    default_prompt: str | None  # the name of the prompt before texts that are no query
    similarity: str  # of `SIMILARITIES`
    #: What of it we do not compute, with the file that asks for it; None: all can be computed.
    unsupported: str | None = None


def transformer_folder(folder: Path) -> Path:
    """Return where the files of the model lie: the folder itself, or one in it."""
    try:
        modules = _modules(folder / MODULES) if (folder / MODULES).is_file() else []
    except CheckpointError:  # told by `embedding_settings`; a classifier needs no such file
        return folder
    inner = folder / modules[0][1] if modules and modules[0][0] == "Transformer" else folder
    return inner if (inner / "config.json").is_file() else folder


def embedding_settings(folder: Path) -> EmbeddingSettings | None:
    """Read the settings of the model in a folder; None where sentence-transformers left none.

    Raises:
        CheckpointError: a file is damaged or missing, or a value makes no sense; names file and
            key. (What is right but not supported is no error here: see `EmbeddingSettings`.)
    """
    root = _root(folder)
    if root is None:
        return None
    # The files of the whole, of the Transformer with its tokenizer, and of the Pooling.
    modules = _modules(root / MODULES)
    general = _Values.read(root / GENERAL)
    transformer = _Values.read(*(folder / name for name in _TRANSFORMER))
    tokenizer = _Values.read(folder / "tokenizer_config.json")
    place = next((place for kind, place in modules if kind == "Pooling"), None)
    pooling = _Pooling() if place is None else _Pooling.read(root / place / "config.json")
    # What we do not compute; told by whoever wants vectors.
    odd = (*_odd_modules(root, modules), *pooling.odd, *_odd_transformer(transformer))
    odd += (*_odd_tokenizer(tokenizer), *_odd_general(general))
    # Prompts: `query` and `document` are always there, and may be empty.
    prompts = {"query": "", "document": "", **general.texts("prompts")}
    default = general.get("default_prompt_name", str)
    if default is not None and default not in prompts:
        raise general.wrong("default_prompt_name", f"one of {', '.join(prompts)}", default)
    similarity = general.get("similarity_fn_name", str) or SIMILARITIES[0]
    if similarity not in SIMILARITIES:
        raise general.wrong("similarity_fn_name", f"one of {', '.join(SIMILARITIES)}", similarity)
    return EmbeddingSettings(
        source=str(root),
        pooling=pooling.name,
        include_prompt=pooling.include_prompt,
        normalize=any(kind == "Normalize" for kind, _ in modules),
        max_length=_max_length(transformer, tokenizer),
        size=general.count("truncate_dim"),
        lowercase=transformer.get("do_lower_case", bool) or False,
        prompts=prompts,
        default_prompt=default,
        similarity=similarity,
        unsupported=next(iter(odd), None),
    )


def copy_settings(folder: Path, target: Path) -> None:
    """Copy the settings of the model in a folder, if any, beside a copy of that model.

    All modules come along, supported or not, but no pickle.
    """
    root = _root(folder)
    if root is None or root.resolve() == target.resolve():
        return
    # The copy lies in the folder itself.
    listed = read_json(root / MODULES)
    modules = _modules(root / MODULES)
    for entry, (kind, _) in zip(listed, modules, strict=True):
        if kind == "Transformer":
            entry["path"] = ""
    text = json.dumps(listed, ensure_ascii=False, indent=2)
    (target / MODULES).write_text(text + "\n", encoding="utf-8")
    files = {root / GENERAL: target / GENERAL}
    files |= {folder / name: target / name for name in _TRANSFORMER}
    for kind, place in modules:
        # No module takes the place of a file of the model.
        if kind != "Transformer" and not (target / place).exists():
            (target / place).mkdir(parents=True)
            for name in ("config.json", "model.safetensors"):
                files[root / place / name] = target / place / name
    for source, copy in files.items():
        if source.is_file():
            shutil.copyfile(source, copy)


def _root(folder: Path) -> Path | None:
    """The folder whose `modules.json` names the model in `folder`: itself, or one above it."""
    for place in (folder, *folder.parents[:3]):
        if (place / MODULES).is_file() and transformer_folder(place) == folder:
            return place
    return None


def _modules(path: Path) -> list[tuple[str, str]]:
    """The class and the folder of each module; classes of other packages with their full names."""
    listed, modules = read_json(path), []
    for entry in listed if isinstance(listed, list) and listed else [None]:
        named = entry if isinstance(entry, dict) else {}
        kind, place = named.get("type"), named.get("path")
        if not isinstance(kind, str) or not isinstance(place, str) or not _is_inside(place):
            raise CheckpointError(
                f"{path}: not a list of modules with a type and a path inside the folder",
                "Copy the file again.",
            )
        ours = kind.startswith("sentence_transformers.")
        modules.append((kind.rpartition(".")[2] if ours else kind, place))
    return modules


def _is_inside(place: str) -> bool:
    path = PureWindowsPath(place)  # knows the separators and roots of both systems
    return not path.anchor and ".." not in path.parts and place.isprintable()


@dataclass(frozen=True)
class _Values:
    """The entries of a JSON object in a file; a missing file has none."""

    path: Path
    entries: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, *paths: Path) -> _Values:
        """Read the first of these files that is there."""
        path = next((path for path in paths if path.is_file()), None)
        return cls(paths[0]) if path is None else cls(path, read_object(path))

    def wrong(self, name: str, expected: str, shown: object) -> CheckpointError:
        """The error for an entry that makes no sense."""
        return CheckpointError(
            f"{self.path}: {name} must be {expected}, not {brief(shown)}", "Repair it there."
        )

    def get(self, name: str, kind: type[T]) -> T | None:
        """An entry of one type; None where it is null or missing."""
        value: T | None = self.entries.get(name)
        if value is None or type(value) is kind:
            return value
        words: dict[type, str] = {bool: "true or false", str: "a text", dict: "an object"}
        raise self.wrong(name, words[kind], describe_value(value))

    def count(self, name: str) -> int | None:
        """A whole number from 1 on, perhaps written as 512.0; None also for 1e30: no limit."""
        value = self.entries.get(name)
        if value is None:
            return None
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not 1 <= value < float("inf") or value != int(value):
            raise self.wrong(name, "a whole number from 1 on", repr(value))
        return int(value) if value < _NO_LIMIT else None

    def texts(self, name: str) -> dict[str, str]:
        """An object of texts, of which some may be null: empty."""
        values = self.get(name, dict) or {}
        for key, text in values.items():
            if not isinstance(text, str | None):
                raise self.wrong(f"{name}.{brief(key)}", "a text", describe_value(text))
        return {key: text or "" for key, text in values.items()}


def _odd_modules(root: Path, modules: list[tuple[str, str]]) -> Iterator[str]:
    """Tell of modules that are not supported, and of those in another order."""
    kinds = [kind for kind, _ in modules if kind != "Dropout"]  # which does nothing but in training
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            yield f"{root / MODULES}: has a {brief(kind)}"
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - {"Normalize"}:
        yield f"{root / MODULES}: is not a Transformer, then a Pooling, but {', '.join(kinds)}"
    # A Normalize may have another input than the vector of the text.
    for place in (place for kind, place in modules if kind == "Normalize"):
        values = _Values.read(root / place / "config.json")
        for name in ("module_input_name", "module_output_name"):
            if values.get(name, str) not in (None, "sentence_embedding"):
                yield f"{values.path}: {name} is {brief(values.entries[name])}"


@dataclass(frozen=True)
class _Pooling:
    """A module that makes one vector of all tokens' vectors."""

    name: str | None = None  # ours; None where it is not supported
    include_prompt: bool = True
    odd: tuple[str, ...] = ()  # what is not supported

    @classmethod
    def read(cls, path: Path) -> _Pooling:
        """Read the `config.json` of such a module."""
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing, but {MODULES} names it",
                "Copy the folder again, with all its files.",
            )
        values = _Values.read(path)
        # Newer files name one pooling, or several; older ones have a switch for each.
        wanted = values.entries.get("pooling_mode")
        if wanted is None:
            switched = [name for name, (key, _) in _POOLINGS.items() if values.get(key, bool)]
            wanted = switched or "mean"
        names = wanted if isinstance(wanted, list) else [wanted]
        if not names or not all(isinstance(name, str) and name in _POOLINGS for name in names):
            raise values.wrong("pooling_mode", f"one of {', '.join(_POOLINGS)}", wanted)
        include = values.get("include_prompt", bool) is not False
        # One of ours, or what to tell of it.
        if len(names) > 1:
            return cls(None, include, (f"{path}: several poolings at once: {', '.join(names)}",))
        ours = _POOLINGS[names[0]][1]
        return cls(ours, include, () if ours else (f"{path}: the pooling {names[0]}",))


def _max_length(transformer: _Values, tokenizer: _Values) -> int | None:
    """The length that texts are cut to, from the place that sentence-transformers prefers."""
    for name in ("processor_kwargs", "tokenizer_args"):
        own = _Values(transformer.path, transformer.get(name, dict) or {})
        if (length := own.count("model_max_length")) is not None:
            return length
    length = transformer.count("max_seq_length")
    return tokenizer.count("model_max_length") if length is None else length


def _odd_transformer(values: _Values) -> Iterator[str]:
    """Tell of settings of the Transformer that are not supported."""
    for name, neutral in _FIXED.items():
        value = values.entries.get(name)
        if isinstance(value, dict):
            # A precision is followed where it is the one that is computed in.
            kept = _HARMLESS | {key for key in _PRECISIONS if value.get(key) == "float32"}
            value = {key: item for key, item in value.items() if key not in kept}
        if value is not None and value != neutral:
            yield f"{values.path}: {name} is {brief(json.dumps(value, ensure_ascii=False))}"
    # How texts are read: not as messages of a chat, and the last hidden states are what counts.
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    ways = values.get("modality_config", dict)
    if ways is not None and ("message" in ways or ways.get("text") != plain):
        yield f"{values.path}: modality_config is {brief(json.dumps(ways, ensure_ascii=False))}"


def _odd_tokenizer(values: _Values) -> Iterator[str]:
    if values.entries.get("truncation_side") == "left":
        yield f"{values.path}: truncation_side is left"


def _odd_general(values: _Values) -> Iterator[str]:
    kind = values.get("model_type", str)
    if kind not in (None, "SentenceTransformer"):
        yield f"{values.path}: model_type is {brief(kind)}"
