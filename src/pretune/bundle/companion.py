"""The second model of a task that trains two: found beside the first, made anew, and written."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pretune.checkpoints.config import config_file, family_of, read_config, sizes_of
from pretune.checkpoints.load import load_into
from pretune.checkpoints.open import open_weights
from pretune.checkpoints.save import save_model
from pretune.checkpoints.source import find_source
from pretune.errors import CheckpointError, note, with_article
from pretune.models.backbone import Backbone, backbone_of
from pretune.models.family import Family
from pretune.tasks.base import AnyTask
from pretune.tasks.two_models import TrainsCompanion


def add_companion(
    model: nn.Module,
    task: AnyTask,
    family: Family,
    folder: Path | None,
    *,
    dtype: torch.dtype | None,
    anew: bool,
    **options: Any,
) -> None:
    """Put the second model of a task beside the first, in place, if the task has one.

    Args:
        model: the first one.
        task: says where the second one comes from, and how large a new one is.
        family: of both.
        folder: of the first one, in which the second one may lie; None for random weights.
        dtype: of the second one; None: that of its file.
        anew: whether one is made where there is none.
        options: `allow_pickle`, and `mapped`, as for `open_weights`.

    Raises:
        CheckpointError: the second model is damaged, of another family, or for another vocabulary;
            or the family has none.
    """
    if not isinstance(task, TrainsCompanion):
        return
    if task.companion_head not in family.heads:
        raise CheckpointError(
            f"{with_article(family.model_type)} model cannot be trained beside another one: it has "
            f"no head for {task.companion_head.replace('_', ' ')}",
            "Encoders such as electra-small have one.",
        )
    # A checkpoint of this task has its own; the source is for the first training.
    place = None if folder is None else folder / task.companion_folder
    if place is None or not (place / "config.json").is_file():
        source = task.companion_source
        place = None if source is None else find_source(source)
    if place is None and not anew:
        return
    if place is None:
        sizes = task.companion_sizes(backbone_of(model))
        companion = family.build(sizes, task.companion_head).to(dtype or torch.float32)
    else:
        companion = _loaded(place, task, family, backbone_of(model), dtype, options)
    task.join(model, companion.eval())


def _loaded(
    place: Path,
    task: TrainsCompanion,
    family: Family,
    beside: Backbone,
    dtype: torch.dtype | None,
    options: dict[str, Any],
) -> nn.Module:
    """Load the second model from its folder."""
    entries = read_config(place)
    own = family_of(entries, place)
    if own.model_type != family.model_type:
        raise CheckpointError(
            f"{place}: is {with_article(own.model_type)}, beside {with_article(family.model_type)}",
            "Both models are of one family: name another one.",
        )
    sizes = sizes_of(own, entries, config_file(place))
    wanted, rows = (c.size("vocab_size") for c in (beside.config, sizes))
    if rows != wanted:
        raise CheckpointError(
            f"{place}: has {rows:,} tokens, and the model beside it {wanted:,}",
            "Both models read the same tokens: name another one.",
        )
    build = partial(own.build, sizes, task.companion_head)
    weights = open_weights(place, **options)
    companion, report = load_into(build, weights, place, own, task.companion_head, dtype=dtype)
    if report.missing:
        note(f"{place}: {report}")
    return companion


def save_companion(
    companion: nn.Module, task: AnyTask, family: Family, folder: Path
) -> Path | None:
    """Write the second model into a folder of its own in that of the first.

    Returns:
        the folder, which still lacks a tokenizer; None if the task has no second model.
    """
    if not isinstance(task, TrainsCompanion):
        return None
    place = folder / task.companion_folder
    place.mkdir(exist_ok=True)
    save_model(companion, place, family, task.companion_head)
    return place
