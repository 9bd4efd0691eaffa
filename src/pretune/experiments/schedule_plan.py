"""The learning rate and the batch size over a run, known before it is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from pretune.bundle.bundle import load
from pretune.data.batch_order import DataOrder
from pretune.errors import PretuneError, RunError
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import MakesExperience
from pretune.tasks.builtin import task_class
from pretune.tasks.features import featurize
from pretune.tokenizers.added_tokens import add_tokens
from pretune.training.data import fit, read_data, tokenizer_for
from pretune.training.logging import Reporter
from pretune.training.on_policy import RolloutOrder
from pretune.training.schedule import BatchSize, Schedule, planned_updates


@dataclass(frozen=True)
class Point:
    """An update worth a look."""

    name: str
    update: int  # counted from 1
    learning_rate: float
    batch: int


@dataclass(frozen=True)
class SchedulePlan:
    """The learning rate and the batch size of each update of a run."""

    schedule: Schedule
    batches: BatchSize
    peak: float
    unit: str  # of the batch sizes, "examples" or "tokens"

    @classmethod
    def of(cls, recipe: Recipe) -> SchedulePlan:
        """Plan the schedule of a recipe: over `max_steps` updates, or as many as its data makes.

        No updates, data or a tokenizer that cannot be read, or nothing to train on, raise a
        RunError.
        """
        options = recipe.train
        if options.max_steps == 0:
            raise RunError("train.max_steps=0: no update, and no schedule", "Give --updates N.")
        if options.max_steps is not None:
            total, batches = options.max_steps, BatchSize.of(options, options.max_steps)
        else:
            total, batches = planned_updates(_order(recipe), options)
        # A recipe gives the batch size in examples or in tokens.
        unit = "examples" if options.batch_size is not None else "tokens"
        return cls(Schedule.of(options, total), batches, options.learning_rate, unit)

    def rate(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        return self.peak * self.schedule.factor(step)

    def points(self) -> list[Point]:
        """List the updates worth a look; an update that is several of them has several names."""
        total, last = self.schedule.total, self.schedule.total - 1
        steps = [("start", 0)]
        if self.schedule.warmup:
            steps.append(("end of warm-up", self.schedule.warmup))
        if self.batches.updates:
            steps.append(("whole batch", self.batches.updates))
        steps += [(f"{quarter}/4", quarter * total // 4) for quarter in (1, 2, 3)]
        if self.schedule.kind == "wsd":
            steps.append(("start of decay", self.schedule.fall))
        steps.append(("end", last))
        # In a short run, several of these are the same update.
        names: dict[int, list[str]] = {}
        for name, step in steps:
            names.setdefault(min(step, last), []).append(name)
        return [
            Point(", ".join(names[step]), step + 1, self.rate(step), self.batches.at(step))
            for step in sorted(names)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Convert the plan and its points to plain values for JSON."""
        points = [asdict(point) for point in self.points()]
        return {**asdict(self), "points": points}


def _order(recipe: Recipe) -> DataOrder:
    lengths, task = _lengths(recipe), task_class(recipe.task.name)(recipe.task)
    if isinstance(task, MakesExperience):
        return RolloutOrder(len(lengths), task.plan, seed=recipe.seed)
    in_tokens = recipe.train.batch_tokens is not None
    return DataOrder(lengths, seed=recipe.seed, in_tokens=in_tokens)


def _lengths(recipe: Recipe) -> NDArray[Any]:
    """Return the number of tokens of each training example, by the data and the tokenizer."""
    try:
        records, _ = read_data(recipe)
        task = task_class(recipe.task.name)(recipe.task)
        fit(task, records)
        # Only the tokenizer of the model is loaded, no weights.
        model, named = recipe.model, tokenizer_for(recipe, records)
        tokenizer = load(model.source, bare=True, tokenizer=named, hollow=True).tokenizer
        add_tokens(tokenizer, model.new_tokens)
        with Reporter() as reporter, reporter.working("reading train", len(records)) as done:
            lengths = featurize(task, records, tokenizer, progress=done).lengths
    except PretuneError as error:
        raise RunError(
            f"the number of updates depends on the data and the tokenizer: {error}",
            "Or give it: --updates N (or train.max_steps=N).",
        ) from None
    if not len(lengths):
        raise RunError("there is nothing to train on", "Give data.train more records.")
    return lengths
