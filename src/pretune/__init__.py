"""From raw text to a served language model.

Train, ask and measure a model:

    run = pretune.train("tickets.csv", {"train.epochs": 5})    # or a frame, a list of dicts, ...
    model = pretune.load(run.folder)                           # a folder, a Hub id, "minilm"
    model("Where is my parcel?")                               # answers
    model.evaluate("test.csv").to_dataframe()

Functions, each with its own help:

    describe      look at data before training: labels, lengths, duplicates, leaks
    train         train or fine-tune as a recipe says, on files or on tables in memory
    resume        go on with a training that was stopped
    load          a `Model`: predict, predict_proba, logits, embed, generate, explain, save
    with_adapter  put an adapter (LoRA) beside a model
    evaluate      measure a model on labelled data
    compare       is one model better than another, or was it luck?
    predict       answers to texts or to the rows of a table
    generate      continuations of prompts
    embed         vectors of texts
    prompt        how well a language model answers from examples in its prompt
    push          publish a model on the Hugging Face Hub
    register      give a metric, loss, callback or task of your own a name

Estimators for scikit-learn: `from pretune.sklearn import TextClassifier, TextRegressor, Tagger`.

Mistakes in data, recipes and models raise a `PretuneError` that says what to do. Documents:
docs/python.md, and `pretune --help` for the command line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pretune import moved
from pretune.version import __version__ as __version__

if TYPE_CHECKING:
    from pretune.api import (
        compare,
        describe,
        embed,
        evaluate,
        generate,
        load,
        predict,
        prompt,
        resume,
        train,
        with_adapter,
    )
    from pretune.bundle.bundle import Bundle
    from pretune.decoding.continuations import Generation
    from pretune.errors import PretuneError
    from pretune.evaluation.compare import Compared
    from pretune.evaluation.explain import Explained
    from pretune.evaluation.few_shot.result import FewShotResult
    from pretune.inference.predictions import Predictions
    from pretune.inspection.describe import Description
    from pretune.model_object import Model
    from pretune.plugins import register
    from pretune.publishing.publish import push
    from pretune.publishing.upload import Published
    from pretune.recipe.recipe import Recipe
    from pretune.tasks.alignment.reward import RewardPrediction
    from pretune.tasks.base import Prediction
    from pretune.tasks.causal_lm.causal_lm import LmPrediction
    from pretune.tasks.classification.classify import ClassPrediction
    from pretune.tasks.classification.multilabel import LabelsPrediction
    from pretune.tasks.dialogue.replies import ReplyPrediction
    from pretune.tasks.masked_lm.mask_lm import MaskPrediction
    from pretune.tasks.multiple_choice.choose import ChoicePrediction
    from pretune.tasks.question_answering.answer import AnswerPrediction
    from pretune.tasks.regression.regress import ScorePrediction
    from pretune.tasks.summarization.summarize import SummaryPrediction
    from pretune.tasks.tagging.tag import TagPrediction
    from pretune.tasks.translation.translate import TranslationPrediction
    from pretune.training.callbacks import Callback, Moment
    from pretune.training.run_result import RunResult
    from pretune.training.validation import Evaluation


moved.install()

#: Where each public name lives.
_HOMES = {
    "AnswerPrediction": "tasks.question_answering.answer",
    "Bundle": "bundle.bundle",
    "ChoicePrediction": "tasks.multiple_choice.choose",
    "ClassPrediction": "tasks.classification.classify",
    "Compared": "evaluation.compare",
    "Description": "inspection.describe",
    "Callback": "training.callbacks",
    "Evaluation": "training.validation",
    "Explained": "evaluation.explain",
    "FewShotResult": "evaluation.few_shot.result",
    "Generation": "decoding.continuations",
    "LabelsPrediction": "tasks.classification.multilabel",
    "LmPrediction": "tasks.causal_lm.causal_lm",
    "MaskPrediction": "tasks.masked_lm.mask_lm",
    "Model": "model_object",
    "Moment": "training.callbacks",
    "Prediction": "tasks.base",
    "Predictions": "inference.predictions",
    "PretuneError": "errors",
    "Published": "publishing.upload",
    "Recipe": "recipe.recipe",
    "ReplyPrediction": "tasks.dialogue.replies",
    "RewardPrediction": "tasks.alignment.reward",
    "RunResult": "training.run_result",
    "ScorePrediction": "tasks.regression.regress",
    "SummaryPrediction": "tasks.summarization.summarize",
    "TagPrediction": "tasks.tagging.tag",
    "TranslationPrediction": "tasks.translation.translate",
    "compare": "api",
    "describe": "api",
    "embed": "api",
    "evaluate": "api",
    "generate": "api",
    "load": "api",
    "predict": "api",
    "prompt": "api",
    "push": "publishing.publish",
    "register": "plugins",
    "resume": "api",
    "train": "api",
    "with_adapter": "api",
}

__all__ = [
    "AnswerPrediction",
    "Bundle",
    "Callback",
    "ChoicePrediction",
    "ClassPrediction",
    "Compared",
    "Description",
    "Evaluation",
    "Explained",
    "FewShotResult",
    "Generation",
    "LabelsPrediction",
    "LmPrediction",
    "MaskPrediction",
    "Model",
    "Moment",
    "Prediction",
    "Predictions",
    "PretuneError",
    "Published",
    "Recipe",
    "ReplyPrediction",
    "RewardPrediction",
    "RunResult",
    "ScorePrediction",
    "SummaryPrediction",
    "TagPrediction",
    "TranslationPrediction",
    "compare",
    "describe",
    "embed",
    "evaluate",
    "generate",
    "load",
    "predict",
    "prompt",
    "push",
    "register",
    "resume",
    "train",
    "with_adapter",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch takes a second, which `pretune --help` need not wait for.
    if name in _HOMES:
        return getattr(importlib.import_module(f"pretune.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'pretune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
