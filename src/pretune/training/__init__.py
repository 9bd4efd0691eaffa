"""Training and evaluation: one loop for every task."""

from pretune.training.evaluate import (
    Evaluation,
    choose_device,
    evaluate_features,
    precision_context,
)
from pretune.training.loop import Course, Stopped, Trainer, seed_everything
from pretune.training.run import (
    Interrupted,
    RunResult,
    SeedsResult,
    read_data,
    read_for,
    train_recipe,
    train_seeds,
)

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
    "seed_everything",
    "train_recipe",
    "train_seeds",
]
