"""`Bundle`: a model with its tokenizer and its task, as one folder on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pretune.errors import CheckpointError, did_you_mean
from pretune.hub import (
    FAMILIES,
    Family,
    LoadReport,
    find_source,
    load_into,
    read_config,
    save_model,
)
from pretune.models import BertConfig, BertModel
from pretune.tasks import TASKS, AnyTask, task_class
from pretune.text import Tokenizer, load_tokenizer

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
    def backbone(self) -> BertModel:
        """The model without its head."""
        backbone = self.model if self.task is None else self.model.get_submodule("backbone")
        assert isinstance(backbone, BertModel)  # noqa: S101 - for the type checker
        return backbone


def load(
    source: str | Path,
    *,
    task: AnyTask | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Bundle:
    """Load a model with its tokenizer.

    Args:
        source: a run of ours, a folder in the Hugging Face layout, `minilm`, or a Hub id.
        task: load for this task: where the checkpoint has no such head (or one for other labels),
            it gets a fresh one. Default: the task the checkpoint was trained for.
        overrides: entries of `config.json` to change, such as dropout.

    Raises:
        CheckpointError: nothing there, damaged, or of an unknown kind.
    """
    folder = find_source(source)
    config = {**read_config(folder), **(overrides or {})}
    family = _family(config, folder)
    model_config = family.config_class.from_dict(config)
    tokenizer = load_tokenizer(folder)
    trained, columns = _trained_task(folder, config)
    wanted = task or trained
    head = "backbone" if wanted is None else wanted.head
    _check_sizes(folder, model_config, tokenizer, wanted)
    same = trained is not None and wanted is not None and _same_head(trained, wanted)

    def build() -> nn.Module:
        backbone = family.backbone(model_config)
        return backbone if wanted is None else wanted.build(backbone)

    def initialise(model: nn.Module, part: nn.Module) -> None:
        backbone = model if wanted is None else model.get_submodule("backbone")
        assert isinstance(backbone, BertModel)  # noqa: S101 - for the type checker
        backbone.init_weights(part)

    fresh: set[str] = set() if same or wanted is None else set(family.head_names(head))
    model, report = load_into(build, folder, family, head, initialise, fresh=fresh)
    headless = set(family.head_names(head)) & set(report.missing) - fresh
    if headless:
        raise CheckpointError(
            f"{folder}: config.json says {family.heads[head].architecture}, but the weights of its "
            f"head are not in the file: {', '.join(sorted(headless))}",
            "Copy the file again; or fine-tune it first: pretune train RECIPE model.from=...",
        )
    return Bundle(model, tokenizer, family, wanted, columns, report)


def _check_sizes(
    folder: Path, config: BertConfig, tokenizer: Tokenizer, task: AnyTask | None
) -> None:
    """Whether no token id and no position can be beyond the model's tables."""
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only "
            f"{config.vocab_size:,}",
            "They are not of the same model: copy both from one place.",
        )
    if task is not None and task.options.max_length > config.max_position_embeddings:
        raise CheckpointError(
            f"{folder}: the model has {config.max_position_embeddings} positions, "
            f"fewer than task.max_length={task.options.max_length}",
            f"Set task.max_length={config.max_position_embeddings} or less.",
        )


def _same_head(trained: AnyTask, wanted: AnyTask) -> bool:
    """Whether the checkpoint's head answers the very question that is asked."""
    return type(trained) is type(wanted) and trained.state() == wanted.state()


def _family(config: Mapping[str, Any], folder: Path) -> Family:
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type '{kind}' is not supported",
            did_you_mean(kind, FAMILIES),
        )
    return FAMILIES[kind]


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
