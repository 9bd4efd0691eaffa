"""What a model can be trained to do: one file a task."""

from __future__ import annotations

from pretune.errors import RecipeError, did_you_mean
from pretune.tasks.answer import Answerer, AnswerPrediction
from pretune.tasks.answer_options import AnswerOptions
from pretune.tasks.base import (
    AnyTask,
    Loss,
    Metrics,
    Prediction,
    Task,
    TaskOptions,
    featurize,
    lower_is_better,
)
from pretune.tasks.causal_lm import CausalLm, CausalLmOptions, LmPrediction
from pretune.tasks.classify import Classify, ClassifyOptions, ClassPrediction
from pretune.tasks.grade import EachLoss, Grade
from pretune.tasks.mask_lm import MaskLm, MaskPrediction
from pretune.tasks.mask_lm_options import MaskLmOptions

#: Every task by the name recipes know it by.
TASKS: dict[str, type[AnyTask]] = {
    task.name: task for task in (Classify, Answerer, MaskLm, CausalLm)
}


def task_class(name: str) -> type[AnyTask]:
    """The task of that name.

    Raises:
        RecipeError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise RecipeError(f"no task is called '{name}'", did_you_mean(str(name), TASKS))
    return TASKS[name]


__all__ = [
    "TASKS",
    "AnswerOptions",
    "AnswerPrediction",
    "Answerer",
    "AnyTask",
    "CausalLm",
    "CausalLmOptions",
    "ClassPrediction",
    "Classify",
    "ClassifyOptions",
    "EachLoss",
    "Grade",
    "LmPrediction",
    "Loss",
    "MaskLm",
    "MaskLmOptions",
    "MaskPrediction",
    "Metrics",
    "Prediction",
    "Task",
    "TaskOptions",
    "featurize",
    "lower_is_better",
    "task_class",
]
