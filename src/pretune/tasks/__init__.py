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
    lower_is_better,
)
from pretune.tasks.causal_lm import CausalLm, CausalLmOptions, LmPrediction
from pretune.tasks.chat import Chat, ChatOptions
from pretune.tasks.choose import ChoicePrediction, Choose, ChooseOptions
from pretune.tasks.classify import Classify, ClassifyOptions, ClassPrediction
from pretune.tasks.featurize import featurize, record_features
from pretune.tasks.grade import Decision, EachLoss, Grade, Mistake
from pretune.tasks.instruct import Instruct, InstructOptions
from pretune.tasks.mask_lm import MaskLm, MaskPrediction
from pretune.tasks.mask_lm_options import MaskLmOptions
from pretune.tasks.multilabel import LabelsPrediction, Multilabel, MultilabelOptions
from pretune.tasks.regress import Regress, RegressOptions, ScorePrediction
from pretune.tasks.replies import ReplyPrediction
from pretune.tasks.tag import Tagger, TagPrediction
from pretune.tasks.tag_options import TagOptions
from pretune.tasks.translate import Translate, TranslateOptions, TranslationPrediction

#: Every task by the name recipes know it by.
TASKS: dict[str, type[AnyTask]] = {
    task.name: task
    for task in (
        Classify,
        Multilabel,
        Regress,
        Choose,
        Tagger,
        Answerer,
        MaskLm,
        CausalLm,
        Chat,
        Instruct,
        Translate,
    )
}


def task_class(name: object) -> type[AnyTask]:
    """The task of that name.

    Raises:
        RecipeError: there is none, or it is no text at all; names the nearest.
    """
    if not isinstance(name, str) or name not in TASKS:
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
    "Chat",
    "ChatOptions",
    "ChoicePrediction",
    "Choose",
    "ChooseOptions",
    "ClassPrediction",
    "Classify",
    "ClassifyOptions",
    "Decision",
    "EachLoss",
    "Grade",
    "Instruct",
    "InstructOptions",
    "LabelsPrediction",
    "LmPrediction",
    "Loss",
    "MaskLm",
    "MaskLmOptions",
    "MaskPrediction",
    "Metrics",
    "Mistake",
    "Multilabel",
    "MultilabelOptions",
    "Prediction",
    "Regress",
    "RegressOptions",
    "ReplyPrediction",
    "ScorePrediction",
    "TagOptions",
    "TagPrediction",
    "Tagger",
    "Task",
    "TaskOptions",
    "Translate",
    "TranslateOptions",
    "TranslationPrediction",
    "featurize",
    "lower_is_better",
    "record_features",
    "task_class",
]
