"""Which figures can end a training (`train.stop_on`)."""

from __future__ import annotations

import torch
from torch import nn

from pretune.data.batch import Features, FeatureSet
from pretune.errors import RunError, did_you_mean
from pretune.inference.runtime import evaluation_mode
from pretune.recipe.schema import TrainSection
from pretune.tasks.added_metrics import AllMetrics
from pretune.tasks.base import AnyTask, MakesExperience


def check_limits(
    options: TrainSection,
    task: AnyTask,
    model: nn.Module,
    train: Features,
    validation: Features | None,
) -> None:
    """Check that every figure with a limit will be computed.

    Args:
        options: with the limits.
        task: with its rewards, if it has any.
        model: any weights will do.
        train: features of the training data.
        validation: those of the evaluations.

    Raises:
        RunError: there is no such figure.
    """
    if not options.stop_on:
        return
    known = [] if validation is None else ["loss", *AllMetrics.of(task).result()]
    if isinstance(task, MakesExperience):
        assert isinstance(train, FeatureSet)  # noqa: S101 - made of records
        with torch.no_grad(), evaluation_mode(model):
            batch = task.rehearsal(train)
            known += task.loss(task.forward(model, batch), batch).parts
    known = list(dict.fromkeys(known))
    for name in options.stop_on:
        if name not in known:
            hint = did_you_mean(name, known) if known else "Give data.validation."
            raise RunError(f"train.stop_on: no figure is called '{name}'", hint)
