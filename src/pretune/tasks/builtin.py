"""The tasks by name: the built-in ones, and the ones that installed packages add."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from pretune.errors import CheckpointError, RecipeError
from pretune.registry import Registry
from pretune.tasks.base import AnyTask, Prediction, published_architecture

#: Every task by its name in recipes; a task's module is imported when the task is asked for.
TASKS: Registry[type[AnyTask]] = Registry(
    "pretune.tasks",
    "task",
    {
        "classify": "pretune.tasks.classification.classify:Classify",
        "multilabel": "pretune.tasks.classification.multilabel:Multilabel",
        "regress": "pretune.tasks.regression.regress:Regress",
        "choose": "pretune.tasks.multiple_choice.choose:Choose",
        "tag": "pretune.tasks.tagging.tag:Tagger",
        "answer": "pretune.tasks.question_answering.answer:Answerer",
        "mask_lm": "pretune.tasks.masked_lm.mask_lm:MaskLm",
        "replaced_token": "pretune.tasks.replaced_token.detect:DetectReplaced",
        "causal_lm": "pretune.tasks.causal_lm.causal_lm:CausalLm",
        "chat": "pretune.tasks.dialogue.dialogue:Chat",
        "instruct": "pretune.tasks.dialogue.dialogue:Instruct",
        "reward": "pretune.tasks.alignment.reward:Reward",
        "dpo": "pretune.tasks.alignment.dpo:Dpo",
        "ppo": "pretune.tasks.alignment.ppo:Ppo",
        "grpo": "pretune.tasks.alignment.grpo:Grpo",
        "rloo": "pretune.tasks.alignment.rloo:Rloo",
        "translate": "pretune.tasks.translation.translate:Translate",
        "summarize": "pretune.tasks.summarization.summarize:Summarize",
    },
)

#: How transformers' class names end, and the tasks that such a checkpoint may be for.
_ARCHITECTURES = {
    "ForSequenceClassification": ("classify", "multilabel", "regress"),
    "ForMultipleChoice": ("choose",),
    "ForTokenClassification": ("tag",),
    "ForQuestionAnswering": ("answer",),
    "ForMaskedLM": ("mask_lm",),
    "ForPreTraining": ("mask_lm", "replaced_token"),
    "LMHeadModel": ("causal_lm",),
    "ForCausalLM": ("causal_lm",),
    "MarianMTModel": ("translate",),
    "ForConditionalGeneration": ("translate",),
}


def task_class(name: object) -> type[AnyTask]:
    """Return the class of a task.

    Raises:
        RecipeError: no task has this name; suggests the nearest.
    """
    return TASKS.find(name, error=RecipeError)


def answer_type(task: AnyTask) -> type[Prediction]:
    """Return the class of a task's answers, as the bases of its class name it."""
    bases = (base for kind in type(task).__mro__ for base in getattr(kind, "__orig_bases__", ()))
    named = (kind for base in bases for kind in get_args(base) if isinstance(kind, type))
    return next((kind for kind in named if issubclass(kind, Prediction)), Prediction)


def saved_task_class(name: object, package: object = None) -> type[AnyTask]:
    """Return the class of a task by the name, and the package if any, in a `pretune.json`.

    Raises:
        CheckpointError: the package is not installed; says how to install it.
        RecipeError: no task has this name.
    """
    # What comes from a file is repeated as a command only where it can be the name of a package.
    if isinstance(package, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", package):
        return TASKS.find(name, package=package, error=CheckpointError)
    return task_class(name)


def published_task(config: Mapping[str, Any]) -> AnyTask | None:
    """Return the task that a published checkpoint was trained for, by its `config.json`.

    Raises:
        CheckpointError: entries that make no sense.
    """
    architecture = published_architecture(config)
    fitting = (own for end, own in _ARCHITECTURES.items() if architecture.endswith(end))
    # Built-in tasks first, and only the ones that can be meant; packages may know any class.
    for name in [*next(fitting, ()), *TASKS.plugins]:
        task = TASKS[name].from_config(config)
        if task is not None:
            return task
    return None
