"""What a model can be trained to do: one file a task."""

from __future__ import annotations

from pretune.errors import RecipeError, did_you_mean
from pretune.tasks.base import (
    AnyTask,
)
from pretune.tasks.causal_lm.causal_lm import CausalLm
from pretune.tasks.classification.classify import Classify
from pretune.tasks.classification.multilabel import Multilabel
from pretune.tasks.dialogue.chat import Chat
from pretune.tasks.dialogue.instruct import Instruct
from pretune.tasks.masked_lm.mask_lm import MaskLm
from pretune.tasks.multiple_choice.choose import Choose
from pretune.tasks.question_answering.answer import Answerer
from pretune.tasks.regression.regress import Regress
from pretune.tasks.tagging.tag import Tagger
from pretune.tasks.translation.translate import Translate

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
