"""Training and evaluation: one loop for every task."""

from pretune.training.evaluate import (
    Evaluation,
    choose_device,
    evaluate_features,
    precision_context,
)
from pretune.training.inputs import read_data, read_for
from pretune.training.loop import Stopped, Trainer
from pretune.training.result import RunResult, SeedsResult
from pretune.training.run import Interrupted, resume, train_recipe, train_seeds
from pretune.training.state import Course, seed_everything

__all__ = [
    "Course",
    "Evaluation",
    "Interrupted",
    "RunResult",
    "SeedsResult",
    "Stopped",
    "Trainer",
    "choose_device",
    "evaluate_features",
    "precision_context",
    "read_data",
    "read_for",
    "resume",
    "seed_everything",
    "train_recipe",
    "train_seeds",
]
