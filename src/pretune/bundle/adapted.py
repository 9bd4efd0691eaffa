"""`with_adapter`: a LoRA adapter put beside a model, whose weights several adapters may share."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretune.bundle.bundle import Bundle
from pretune.bundle.loadable import check_segments, check_sizes, head_names
from pretune.bundle.task_file import TASK_FILE, trained_task, with_options
from pretune.checkpoints.config import read_config
from pretune.checkpoints.names import expand
from pretune.checkpoints.peft import TASK_TYPES, PublishedAdapter, put_beside
from pretune.errors import CheckpointError, RunError, note
from pretune.models.backbone import Backbone
from pretune.models.lora import adapters, learned_rows
from pretune.models.packed import is_int8
from pretune.tasks.base import AnyTask, UsesTokenizer


def with_adapter(
    bundle: Bundle, source: str | Path, *, options: Mapping[str, Any] | None = None
) -> Bundle:
    """Put an adapter that pretune or peft wrote beside a model.

    The model stays as it is, and the result shares its weights: each further adapter takes the
    memory of its own small matrices and of its head.

    Args:
        bundle: the model that the adapter was trained beside, with or without a task.
        source: the folder of the adapter, such as `RUN/best/adapter`.
        options: changed options of the task, e.g. `{"beams": 1}`.

    Returns:
        a model that answers as the adapter was trained to, in evaluation mode. Its task is that of
        the adapter if pretune wrote it; else what peft's `task_type` and the model's own
        `config.json` say.

    Raises:
        CheckpointError: there is no adapter, it is damaged, of a kind that is not computed here, or
            for another model.
        RunError: the model has an adapter already, or is in 8 bits.
    """
    _check_base(bundle)
    adapter = PublishedAdapter.read(Path(source))
    sizes, family = bundle.backbone.config, bundle.family
    task, columns = _task_of(bundle, adapter)
    if options:
        task = with_options(task, options)
    head_names(family, task)
    tokenizer = copy.deepcopy(bundle.tokenizer)
    check_sizes(adapter.folder, sizes, tokenizer, task)
    # The same model without weights of its own: they are those of the base, and of the adapter.
    with torch.device("meta"):
        backbone = family.build(sizes)
        assert isinstance(backbone, Backbone)  # noqa: S101 - for the type checker
        model = task.build(backbone)
    shared = bundle.backbone.state_dict(keep_vars=True, prefix="backbone.")
    if bundle.task is not None and bundle.task.head == task.head:
        shared = bundle.model.state_dict(keep_vars=True)
    known = model.state_dict()
    fitting = {n: t for n, t in shared.items() if n in known and t.shape == known[n].shape}
    model.load_state_dict(fitting, strict=False, assign=True)
    put_beside(model, adapter, family, task.head)
    _refuse_hollow(model, adapter, bundle, task)
    for part in adapters(model).values():
        part.apart = True
    model.requires_grad_(False)
    if isinstance(task, UsesTokenizer):
        task.bind(tokenizer)
    check_segments(adapter.folder, sizes, tokenizer, task)
    _note_other_base(bundle, adapter)
    return replace(bundle, model=model.eval(), tokenizer=tokenizer, task=task, columns=columns)


def _check_base(bundle: Bundle) -> None:
    """Refuse models that an adapter cannot lie beside."""
    if adapters(bundle.model) or learned_rows(bundle.model):
        raise RunError(
            "the model has an adapter already",
            "Put each adapter beside the model itself: pretune.with_adapter(BASE, FOLDER).",
        )
    if is_int8(bundle.model):
        raise RunError(
            f"{bundle.folder}: its weights are in 8 bits, and an adapter was trained beside others",
            "Use the model that it was rounded from.",
        )
    if bundle.backbone.config.removed_heads:
        raise RunError(
            f"{bundle.folder}: attention heads were removed from it, and an adapter was trained "
            "beside all of them",
            "Use the model that it was pruned from.",
        )


def _task_of(bundle: Bundle, adapter: PublishedAdapter) -> tuple[AnyTask, dict[str, str]]:
    """The task that an adapter was trained for, and the data's names of its columns."""
    sizes = bundle.backbone.config
    if (adapter.folder / TASK_FILE).is_file():
        task, columns = trained_task(adapter.folder, {}, sizes)
        assert task is not None  # noqa: S101 - the file names it
        return task, columns
    # An adapter of peft's: for what the model itself does, or what peft and the head's shape say.
    heads = [head for head, kind in TASK_TYPES.items() if kind == adapter.task_type]
    own = bundle.task
    if own is not None and (own.head in heads or not heads) and _head_fits(bundle, own, adapter):
        return own.with_state(own.state()), dict(bundle.columns)
    entries = {} if bundle.folder is None else read_config(bundle.folder)
    for head in heads:
        if head in bundle.family.heads:
            task, _ = trained_task(adapter.folder, _entries(bundle, head, adapter, entries), sizes)
            if task is not None and task.head == head:
                return task, {}
    raise CheckpointError(
        f"{adapter.folder}: the adapter does not say what it was trained for (task_type: "
        f"{adapter.task_type})",
        "Load the model for its task first, or write the adapter with pretune, which adds "
        f"{TASK_FILE}.",
    )


def _head_fits(bundle: Bundle, task: AnyTask, adapter: PublishedAdapter) -> bool:
    """Whether the head of a model has the shapes of the one that an adapter brings, if any."""
    names = expand(bundle.family.heads[task.head].rules, (1,))
    own = {published.parts[0]: ours for ours, published in names.items()}
    state = bundle.model.state_dict()
    return all(
        own[name] not in state or state[own[name]].shape == tensor.shape
        for name, tensor in adapter.whole.items()
        if name in own
    )


def _entries(
    bundle: Bundle, head: str, adapter: PublishedAdapter, entries: Mapping[str, Any]
) -> dict[str, Any]:
    """What a `config.json` would say of a model with an adapter's head.

    The labels are the model's own where it has as many; else they are numbered, as in transformers.
    """
    layout = bundle.family.heads[head]
    names = expand(layout.rules, (1,))
    last = [published.parts[0] for ours, published in names.items() if "classifier.weight" in ours]
    counts = [len(adapter.tensors[name]) for name in last if name in adapter.tensors]
    made = {**entries, "architectures": [layout.architecture]}
    if counts and len(entries.get("id2label") or ()) != counts[0]:
        made["id2label"] = {str(i): f"LABEL_{i}" for i in range(counts[0])}
        made["label2id"] = {f"LABEL_{i}": i for i in range(counts[0])}
    return made


def _refuse_hollow(
    model: nn.Module, adapter: PublishedAdapter, bundle: Bundle, task: AnyTask
) -> None:
    """Refuse an adapter for a head that neither it nor the model has."""
    hollow = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    if hollow:
        raise CheckpointError(
            f"{adapter.folder}: neither the adapter nor the model {bundle.folder} has "
            f"'{hollow[0]}', which the task {task.name} needs",
            "The adapter was trained beside another model, or without its head (modules_to_save).",
        )


def _note_other_base(bundle: Bundle, adapter: PublishedAdapter) -> None:
    """Tell where an adapter names another model than the one that it is put beside."""
    own = "" if bundle.report is None else bundle.report.source
    if adapter.base is None or not own or Path(adapter.base).name == Path(own).name:
        return
    note(
        f"{adapter.folder}: was trained beside {adapter.base}; it only answers rightly if {own} is "
        "the same model"
    )
