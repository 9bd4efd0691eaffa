"""`Bundle`: a model with its tokenizer and its task, as one folder on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretune.errors import CheckpointError
from pretune.hub import (
    Family,
    LoadReport,
    WeightSource,
    family_of,
    find_source,
    load_into,
    open_weights,
    read_config,
    save_model,
)
from pretune.models import SIZES, Backbone, ModelConfig, resize_vocabulary
from pretune.tasks import TASKS, AnyTask, task_class
from pretune.text import Tokenizer, extend, load_tokenizer

#: Our own file beside transformers' ones: the task, its options, and what it learned from the data.
TASK_FILE = "pretune.json"


@dataclass
class Bundle:
    """What `load` gives.

    Attributes:
        model: the backbone, or the backbone with the task's head.
        tokenizer: of the model.
        family: how the published layout names its parts.
        task: what it was trained for, or None for a bare backbone.
        columns: the column names its training data had, by the task's names.
        report: what loading found and did not find.
    """

    model: nn.Module
    tokenizer: Tokenizer
    family: Family
    task: AnyTask | None
    columns: dict[str, str] = field(default_factory=dict)
    report: LoadReport | None = None

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        backbone = self.model if self.task is None else self.model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        return backbone


def load(
    source: str | Path,
    *,
    task: AnyTask | None = None,
    bare: bool = False,
    tokenizer: str | Path | None = None,
    dropout: float | None = None,
    attention_dropout: float | None = None,
    allow_pickle: bool = False,
) -> Bundle:
    """Load a model with its tokenizer.

    Args:
        source: a run of ours, a folder in the Hugging Face layout, Google's TensorFlow release of a
            BERT, `minilm`, a Hub id (`owner/name[@revision]`), or the name of a size, such as
            `bert-base`, for random weights.
        task: load for this task: where the checkpoint has no such head (or one for other labels),
            it gets a fresh one. Default: the task the checkpoint was trained for.
        bare: load the backbone alone, whatever the checkpoint was trained for.
        tokenizer: a folder with another one than the source's.
        dropout: of the hidden layers; default: as the checkpoint says.
        attention_dropout: of the attention weights; default: as the checkpoint says.
        allow_pickle: also read `pytorch_model.bin`, by torch's restricted unpickler.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    folder, place, config = _described(source)
    family = family_of(config, place)
    config_class = family.backbone.config_class
    changed = config_class.dropout_entries(dropout, attention_dropout)
    model_config = config_class.from_dict({**config, **changed})
    found = load_tokenizer(tokenizer or folder or _vocabulary_of(family, str(source)))
    trained, columns = (None, {}) if folder is None else _trained_task(folder, config)
    wanted = None if bare else task or trained
    _check_sizes(place, model_config, found, wanted)
    built = _Building(family, model_config, wanted)
    if folder is None:
        model, report = built.build(), LoadReport(f"random weights of the size {source}", 0)
    else:
        same = trained is not None and wanted is not None and _same_head(trained, wanted)
        weights = open_weights(folder, allow_pickle=allow_pickle)
        model, report = built.fill(weights, folder, keep_head=same)
    if wanted is not None:
        wanted.bind(found)
    return Bundle(model, found, family, wanted, columns, report)


@dataclass(frozen=True)
class _Building:
    """A model in the making: its family, its sizes, and what it is for."""

    family: Family
    config: ModelConfig
    task: AnyTask | None

    @property
    def head(self) -> str:
        return "backbone" if self.task is None else self.task.head

    def build(self) -> nn.Module:
        backbone = self.family.backbone(self.config)  # type: ignore[call-arg]
        if self.task is None:
            return backbone
        if self.head not in self.family.heads:
            raise CheckpointError(
                f"a {self.family.model_type} model cannot be used for the task {self.task.name}",
                f"It has heads for: {', '.join(h for h in self.family.heads if h != 'backbone')}.",
            )
        return self.task.build(backbone)

    def initialise(self, model: nn.Module, part: nn.Module) -> None:
        backbone = model if self.task is None else model.get_submodule("backbone")
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        backbone.init_weights(part)

    def fill(
        self, weights: WeightSource, folder: Path, *, keep_head: bool
    ) -> tuple[nn.Module, LoadReport]:
        names = set(self.family.head_names(self.head)) if self.head in self.family.heads else set()
        fresh: set[str] = set() if keep_head or self.task is None else names
        model, report = load_into(
            self.build, weights, folder, self.family, self.head, self.initialise, fresh=fresh
        )
        headless = names & set(report.missing) - fresh
        if headless:
            raise CheckpointError(
                f"{folder}: config.json says {self.family.heads[self.head].architecture}, but the "
                f"weights of its head are not in the file: {', '.join(sorted(headless))}",
                "Copy the file again; or fine-tune it first: pretune train RECIPE model.from=...",
            )
        return model, report


def _described(source: str | Path) -> tuple[Path | None, Path, dict[str, Any]]:
    """The folder of a source (None for a size), what to call it in errors, and its config."""
    if str(source) in SIZES:
        kind, entries = SIZES[str(source)]
        return None, Path(source), {"model_type": kind, **entries}
    folder = find_source(source)
    return folder, folder, read_config(folder)


def _vocabulary_of(family: Family, name: str) -> Path:
    """A tokenizer for random weights: the uncased English one that comes with `minilm`."""
    if family.model_type not in ("bert", "distilbert"):
        raise CheckpointError(
            f"{name}: random weights need a tokenizer",
            "Name a folder that has one: model.tokenizer=FOLDER",
        )
    return find_source("minilm")


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        name: its folder, or the name of its size.
        folder: where it is; None where only a size was named.
        family: how the published layout names its parts.
        model: the backbone, or the backbone with the task's head, on the meta device.
        task: what it was trained for, or None for a bare backbone.
    """

    name: str
    folder: Path | None
    family: Family
    model: nn.Module
    task: AnyTask | None


def outline(source: str | Path) -> Outline:
    """What `load` would load, by `config.json` alone: quick, and in no memory.

    Args:
        source: as for `load`.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    folder, place, config = _described(source)
    family = family_of(config, place)
    task = None if folder is None else _trained_task(folder, config)[0]
    sizes = family.backbone.config_class.from_dict(config)
    with torch.device("meta"):
        model = _Building(family, sizes, task).build()
    return Outline(str(place), folder, family, model, task)


def _check_sizes(
    folder: Path, config: ModelConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Whether no token id and no position can be beyond the model's tables."""
    vocabulary, positions = config.size("vocab_size"), config.size("max_position_embeddings")
    if tokenizer.vocab_size > vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
            f"{vocabulary:,}",
            "They are not of the same model: copy both from one place.",
        )
    if task is not None and task.options.max_length > positions:
        raise CheckpointError(
            f"{folder}: the model has {positions} positions, "
            f"fewer than task.max_length={task.options.max_length}",
            f"Set task.max_length={positions} or less.",
        )


def _same_head(trained: AnyTask, wanted: AnyTask) -> bool:
    """Whether the checkpoint's head answers the very question that is asked."""
    return type(trained) is type(wanted) and trained.state() == wanted.state()


def _trained_task(folder: Path, config: Mapping[str, Any]) -> tuple[AnyTask | None, dict[str, str]]:
    path = folder / TASK_FILE
    if not path.is_file():
        found = (kind.from_config(config) for kind in TASKS.values())
        return next((task for task in found if task is not None), None), {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        kind = task_class(saved["options"]["name"])
        task = kind(kind.options_type.model_validate(saved["options"])).with_state(saved["state"])
        return task, dict(saved.get("columns", {}))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not readable ({type(error).__name__}: {error})",
            "It was written by another version, or damaged: train again, or copy it again.",
        ) from None


def grow_vocabulary(bundle: Bundle, tokens: Sequence[str], multiple: int = 1) -> int:
    """Teach a model new tokens: tokenizer, embeddings and output layer together, in place.

    Args:
        bundle: to change.
        tokens: as they occur in text; those already known are passed over.
        multiple: pad the embeddings to a multiple of this.

    Returns:
        how many tokens were new.

    Raises:
        DataError: a token is empty.
    """
    added = extend(bundle.tokenizer, tokens)
    rows = max(bundle.tokenizer.vocab_size, bundle.backbone.config.size("vocab_size"))
    resize_vocabulary(bundle.model, -(-rows // multiple) * multiple)
    return added


def save(bundle: Bundle, folder: Path) -> None:
    """Write model, tokenizer and task into an existing folder; transformers opens it too."""
    task = bundle.task
    head = "backbone" if task is None else task.head
    extra = {} if task is None else task.config_entries()
    save_model(bundle.model, folder, bundle.family, head, extra)
    bundle.tokenizer.save(folder)
    if task is not None:
        saved = {
            "options": task.options.model_dump(mode="json"),
            "state": task.state(),
            "columns": bundle.columns,
        }
        text = json.dumps(saved, ensure_ascii=False, indent=2)
        (folder / TASK_FILE).write_text(text + "\n", encoding="utf-8")
