"""Publish a trained model. What is sent is written anew, and tells nothing about this machine."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretune.bundle.bundle import Bundle, load, save
from pretune.bundle.task_file import TASK_FILE
from pretune.checkpoints.atomic_io import atomic_folder
from pretune.checkpoints.int8_weights import QUANTIZATION
from pretune.checkpoints.source import EMBEDDED, HUB_ID
from pretune.data.readers.files import TABLE_SUFFIXES
from pretune.data.readers.hub import HUB_DATASET
from pretune.data.readers.plain_text import parallel_files
from pretune.errors import RunError
from pretune.export.pruning import PruningResult
from pretune.inference.predict import task_of
from pretune.models.packed import is_int8
from pretune.publishing.card import CardFacts, DataSource, model_card
from pretune.publishing.upload import (
    Published,
    StagedFile,
    check_name,
    hub_token,
    staged_files,
    upload,
)
from pretune.recipe.recipe import Recipe
from pretune.training.run_folder import RECIPE, RESULT

#: Keys of tokenizer_config.json with the paths of files on the machine where it was made.
_PLACES = re.compile(r"_?name_or_path|\w*_(?:file|path|dir|folder)")
#: Beginning of a path from the root, a drive, a share or a home folder.
_ABSOLUTE = re.compile(r"(?:/|~|\\\\|[A-Za-z]:[\\/]|file:)")
#: Such a path with at least one folder in the middle of a text, but not the end of a URL.
_PATH_IN_TEXT = re.compile(r"""(?<![\w/:.~])(?:~|/[^\s/'"]+|[A-Za-z]:)(?:[\\/][^\s\\/'"]+)+""")
#: Keys of a recipe whose values are words, even if they look like paths.
_WORDS = (
    "task.labels",
    "task.label_columns",
    "task.separator",
    "task.system",
    "task.reward.match",
    "task.judge.match",
    "data.columns",
    "model.new_tokens",
)
#: Keys of a recipe whose values name data.
_DATA = {"data.train", "data.validation"}
#: Keys of a task's file whose values name models: references and rewards.
_MODELS = {"reference", "run"}
#: Formats of local files, as `datasets` calls them.
_FORMATS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_FORMATS |= dict.fromkeys((".json", ".jsonl", ".ndjson"), "json")


@dataclass(frozen=True)
class Trained:
    """A trained model on this machine."""

    folder: Path  # of the run, or of a checkpoint alone
    recipe: Recipe | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    start: Path = field(default_factory=Path.cwd)  # where relative paths of the recipe start

    def is_local(self, source: str) -> bool:
        """Tell whether a source named by the recipe is on the disk of this machine."""
        # The functions of os.path, as those of Path raise if a name is too long.
        return os.path.exists(source) or os.path.exists(os.path.join(self.start, source))


def push(
    run: str | Path,
    repo: str,
    *,
    public: bool = False,
    license_id: str | None = None,
    languages: Sequence[str] = (),
    allow_pickle: bool = False,
    say: Callable[[str], None] = print,
) -> Published:
    """Publish a trained model on the Hugging Face Hub.

    Args:
        run: folder of a finished run, or of a checkpoint.
        repo: `owner/name`; created if it does not exist.
        public: let everybody see a new repository; an existing one keeps its visibility.
        license_id: id of the license on the Hub, e.g. `apache-2.0`.
        languages: codes of the languages on the Hub, e.g. `["en"]`.
        allow_pickle: read `pytorch_model.bin` of a checkpoint; what is sent is safetensors.
        say: receives a line of text for each step.

    Raises:
        RunError: there is no run, or it is not finished.
        CheckpointError: the model is damaged.
        HubError: the name is wrong, there is no token, or the Hub refused or cannot be reached.
    """
    # Ask for name and token first: a model takes a while to load.
    check_name(repo)
    token = hub_token()
    with tempfile.TemporaryDirectory(prefix="pretune-push-") as place:
        folder = Path(place) / "model"
        files = stage(
            run, repo, folder, license_id=license_id, languages=languages, allow_pickle=allow_pickle
        )
        total = sum(file.size for file in files)
        say(f"sending {len(files)} files, {total / 2**20:,.1f} MiB, to {repo}")
        return upload(folder, repo, token=token, public=public, message="Publish with pretune")


def stage(
    run: str | Path,
    repo: str,
    folder: str | Path,
    *,
    license_id: str | None = None,
    languages: Sequence[str] = (),
    allow_pickle: bool = False,
) -> tuple[StagedFile, ...]:
    """Write what `push` would send into a new folder; needs neither network nor token.

    The options are those of `push`. `folder` must not exist; it appears only when it is complete.

    Returns:
        the files that would be sent.

    Raises:
        RunError: there is no run, it is not finished, or the folder cannot be written.
        CheckpointError: the model is damaged.
        HubError: the Hub does not accept the name.
    """
    check_name(repo)
    trained = find_trained(run)
    bundle = load(trained.folder, dtype="auto", allow_pickle=allow_pickle)
    # Only pretune reads weights in 8 bits.
    rounding = _rounding(bundle)
    task = task_of(bundle)
    facts = CardFacts(
        repo=repo,
        task=task,
        architecture=bundle.family.heads[task.head].architecture,
        in_transformers=bundle.family.published and rounding is None,
        parameters=sum(parameter.numel() for parameter in bundle.model.parameters()),
        license=license_id,
        languages=tuple(languages),
        pruned=_pruning(trained),
        quantized=rounding,
        **_training_facts(trained),
    )
    # The folder appears only when all of it is written.
    try:
        with atomic_folder(Path(folder)) as place:
            _fill(place, bundle, facts)
    except FileExistsError:
        raise RunError(f"{folder}: exists already", "Choose a new folder.") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror})") from None
    return staged_files(Path(folder))


def _rounding(bundle: Bundle) -> dict[str, Any] | None:
    """How the weights were rounded to 8 bits, as `config.json` says; None if they were not."""
    if not is_int8(bundle.model) or bundle.folder is None:
        return None
    entries = json.loads((bundle.folder / "config.json").read_text(encoding="utf-8"))
    record = entries.get(QUANTIZATION)
    return dict(record) if isinstance(record, Mapping) else {}


def _pruning(trained: Trained) -> PruningResult | None:
    """What was removed from a model, or from the one that its run started from."""
    pruned = PruningResult.read(trained.folder)
    if pruned is None and trained.recipe is not None:
        pruned = PruningResult.read(trained.start / os.path.expanduser(trained.recipe.model.source))
    return pruned


def _fill(place: Path, bundle: Bundle, facts: CardFacts) -> None:
    """Write all files of a published model anew, so that nothing else comes along."""
    tokenizer = bundle.tokenizer
    tokenizer.settings = {k: v for k, v in tokenizer.settings.items() if not _PLACES.fullmatch(k)}
    save(bundle, place, int8=facts.quantized)
    values = json.loads((place / TASK_FILE).read_text(encoding="utf-8"))
    text = json.dumps(_without_places(values), ensure_ascii=False, indent=2)
    (place / TASK_FILE).write_text(text + "\n", encoding="utf-8")
    (place / "README.md").write_text(model_card(facts), encoding="utf-8")
    if facts.recipe is not None:
        text = "# Of local files and folders only the names are given.\n" + facts.recipe.to_yaml()
        (place / RECIPE).write_text(text, encoding="utf-8")


def _without_places(value: Any, key: str = "") -> Any:
    """Copy the values of a task's file, keeping only the last part of paths to other models."""
    if isinstance(value, Mapping):
        return {name: _without_places(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, key) for item in value]
    path = key in _MODELS and isinstance(value, str) and _ABSOLUTE.match(value)
    return _name(value) if path else value


def find_trained(run: str | Path) -> Trained:
    """Find the run or the checkpoint in a folder.

    Raises a RunError if there is none or it is not finished; its hint says what to push instead.
    """
    path = Path(os.path.expanduser(run))
    if not os.path.isdir(path):
        raise RunError(
            f"{path}: no such folder",
            "Give a run on this machine, e.g. runs/tickets, or one of its checkpoints.",
        )
    if (path / "config.json").is_file():
        return Trained(path)
    if not (path / RECIPE).is_file():
        # `--seeds` leaves a folder of runs.
        seeds = sorted(path.glob(f"seed-*/{RECIPE}"))
        if seeds:
            raise RunError(f"{path}: holds several runs", f"Push one of them: {seeds[0].parent}")
        raise RunError(
            f"{path}: neither a run nor a checkpoint (no {RECIPE}, no config.json)",
            "Give a run on this machine, e.g. runs/tickets, or one of its checkpoints.",
        )
    if not (path / RESULT).is_file():
        raise RunError(
            f"{path}: the run is not finished (no {RESULT})",
            f"Wait for it; or publish its last checkpoint, without results: {path / 'last'}",
        )
    recipe = Recipe.load(path / RECIPE)
    return Trained(path, recipe, _read_result(path / RESULT), _started_in(path, recipe.output))


def _read_result(path: Path) -> dict[str, Any]:
    hint = f"Copy the run again; or publish its best model alone: {path.parent / 'best'}"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error})", hint) from None
    if not isinstance(result, dict):
        raise RunError(f"{path}: expected a JSON object", hint)
    return result


def _started_in(run: Path, output: str) -> Path:
    """Return the folder where a run was started, if the run is where it was written."""
    inside = Path(os.path.normpath(output)).parts
    parts = run.resolve().parts
    if not Path(output).is_absolute() and parts[-len(inside) :] == inside:
        return Path(*parts[: -len(inside)])
    return Path.cwd()


def _training_facts(trained: Trained) -> dict[str, Any]:
    """Collect what the card tells about the training."""
    recipe = trained.recipe
    if recipe is None:
        return {}
    # Validation data are data of their own, or a share of the training data.
    training = _data_source(trained, recipe.data.train)
    validation = None
    if isinstance(recipe.data.validation, str):
        validation = _data_source(trained, recipe.data.validation)
    elif recipe.data.validation is not None:
        validation = replace(training, held_back=recipe.data.validation)
    elif recipe.data.fold is not None:
        validation = replace(training, held_back=round(1 / recipe.data.fold.of, 4))
    base, on_hub = _base(trained, recipe.model.source)
    return {
        "recipe": shareable(trained, recipe),
        "base": base,
        "base_model": base if on_hub else None,
        "training": training,
        "validation": validation,
        "result": trained.result,
    }


def _data_source(trained: Trained, source: str) -> DataSource:
    """Describe some data without the folders of this machine."""
    match = _hub_dataset(trained, source)
    if match:
        return DataSource(source, match["name"], True, match["config"], match["split"])
    return DataSource(_data_name(source), _FORMATS.get(Path(source).suffix.lower(), "text"))


def _hub_dataset(trained: Trained, source: str) -> re.Match[str] | None:
    if trained.is_local(source) or Path(source).suffix.lower() in TABLE_SUFFIXES:
        return None
    return HUB_DATASET.fullmatch(source)


def _base(trained: Trained, source: str) -> tuple[str, bool]:
    """Name the model that another was trained from, and tell whether that is its id on the Hub."""
    if source in EMBEDDED:
        package = EMBEDDED[source].package.replace("_", "-")
        return f"{source} (of the Python package {package})", False
    match = None if trained.is_local(source) else HUB_ID.fullmatch(source)
    if match:
        return match["repo"], True
    return f"{_name(source)} (a local model)", False


def shareable(trained: Trained, recipe: Recipe) -> Recipe:
    """Copy a recipe, keeping only the last part of every local path."""

    def shared(value: Any, key: str) -> Any:
        if key in _WORDS:
            return value
        if isinstance(value, Mapping):
            return {k: shared(v, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [shared(item, key) for item in value]
        if not isinstance(value, str):
            return value
        # A description may mention a path; any other value may be one.
        if key == "description":
            return _PATH_IN_TEXT.sub(lambda match: _name(match[0]), value)
        if _ABSOLUTE.match(value) or _means_local(trained, key, value):
            return _data_name(value) if key in _DATA else _name(value)
        return value

    return Recipe.of(shared(recipe.to_dict(), ""))


def _means_local(trained: Trained, key: str, value: str) -> bool:
    """Tell whether a value of a recipe is certainly a path, absolute or relative."""
    if key in _DATA:
        return _hub_dataset(trained, value) is None
    if key == "model.from":
        return value not in EMBEDDED and (trained.is_local(value) or not HUB_ID.fullmatch(value))
    return key == "output"


def _data_name(source: str) -> str:
    """Return the last part of a path; for two files of parallel text, of both."""
    both = parallel_files(source)
    return _name(source) if both is None else ",".join(_name(str(path)) for path in both)


def _name(path: str) -> str:
    """Return the last part of a path of any operating system."""
    parts = [part for part in re.split(r"[\\/]", path) if part not in {"", ".", "..", "~"}]
    return parts[-1] if parts else "local"
