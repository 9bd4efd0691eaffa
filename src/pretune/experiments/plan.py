"""What a training will take, told before it starts: data, updates, FLOPs, memory, disk and hours.

The data is read and tokenized and the model is loaded as the run would do it. The time comes from
a few real updates on that copy of the model, on the run's own first batches: no peak rate of the
machine says how much of it a small model gets.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from pretune.bundle.bundle import Bundle
from pretune.data.arrays import Array
from pretune.data.batch import Features
from pretune.data.batch_order import Cursor
from pretune.experiments.costs import (
    FLOAT,
    INFERENCE_SLACK,
    MOMENTS,
    TRAINING_SLACK,
    Memory,
    backbone_of,
    count_flops,
    estimate_memory,
)
from pretune.inference.runtime import choose_device, precision_context
from pretune.inference.strategies import strategy_for
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import AnyTask, drawn, with_answers
from pretune.tasks.builtin import task_class
from pretune.tasks.feature_cache import FeatureCache
from pretune.tasks.features import featurize
from pretune.training.data import fit, read_data
from pretune.training.freeze import reads_once
from pretune.training.logging import Reporter
from pretune.training.loop import Trainer
from pretune.training.run import starting_model
from pretune.training.state import seed_everything
from pretune.training.stop import Stopped

#: Updates that are not counted (the first ones ask for memory), the fewest that are, and the
#: seconds after which no further one begins.
WARM, FEWEST, SECONDS = 2, 5, 8.0
#: Python, PyTorch and the tokenizer. And what `TRAINING_SLACK` is for batches of uneven lengths,
#: whose blocks fit less well into the holes of the last ones. Both measured (glibc 2.36, MiniLM on
#: MRPC, batches of 32 and 64: 1.88 and 1.85).
BASE, UNEVEN_SLACK = 310 * 2**20, 1.87


@dataclass(frozen=True)
class Speed:
    """How fast this machine does it, by updates that were really done.

    Attributes:
        device: where.
        updates: how many were timed.
        training_tokens_per_second: in updates.
        evaluation_tokens_per_second: forward only; None without validation data.
        flops_per_second: of the updates.
    """

    device: str
    updates: int
    training_tokens_per_second: float
    evaluation_tokens_per_second: float | None
    flops_per_second: float


@dataclass(frozen=True)
class RunPlan:
    """All of it.

    Attributes:
        examples: training sequences of an epoch; a long record may give several.
        validation_examples: sequences of an evaluation.
        tokens_per_epoch: of the training data.
        truncated: training sequences whose text is cut.
        updates: in all.
        epochs: in all.
        evaluations: how many there are.
        tokens: trained on, over all epochs.
        parameters: of the model.
        trained: those that learn.
        flops_per_token: of the training, backward pass included; of the mean length.
        flops: of the training.
        memory: of the largest batch, in float32 on a CPU.
        process_bytes: about the most that the whole process holds then, evaluation included.
        checkpoint_bytes: of one saved model's weights.
        speed: None where nothing was measured.
        training_seconds: of the updates; None where nothing was measured.
        evaluation_seconds: of all evaluations.
        reading_seconds: what reading and tokenizing the data took here.
    """

    examples: int
    validation_examples: int
    tokens_per_epoch: int
    truncated: int
    updates: int
    epochs: float
    evaluations: int
    tokens: int
    parameters: int
    trained: int
    flops_per_token: int
    flops: int
    memory: Memory
    process_bytes: int
    checkpoint_bytes: int
    speed: Speed | None
    training_seconds: float | None
    evaluation_seconds: float | None
    reading_seconds: float

    @property
    def hours(self) -> float | None:
        """From start to end, but for writing checkpoints."""
        if self.training_seconds is None:
            return None
        return (
            self.reading_seconds + self.training_seconds + (self.evaluation_seconds or 0)
        ) / 3600

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; memory in bytes."""
        return {**asdict(self), "hours": self.hours}


def plan_run(recipe: Recipe, *, measure: bool = True) -> RunPlan:
    """Work out what training a recipe takes; writes nothing, and needs no output folder.

    Args:
        recipe: what would be trained.
        measure: do a few updates to tell the time.

    Raises:
        PretuneError: bad data or model, as in training.
    """
    device = choose_device(recipe.train.device)
    start = time.perf_counter()
    task, bundle, train, validation = _prepared(recipe)
    reading = time.perf_counter() - start
    model = bundle.model.to(device)
    trainer = _trainer(recipe, task, model, train, device)
    updates, batches = trainer.total, _first_epoch(trainer)
    each = len(batches)
    per_epoch = int(train.lengths.sum())
    epochs = updates / each if recipe.train.max_steps else recipe.train.epochs
    every = recipe.train.eval_every
    evaluations = math.ceil(epochs) if every == "epoch" else math.ceil(updates / every)
    per_token = _flops_per_token(model, max(1, round(per_epoch / len(train))))
    passes = 1.0 if epochs > 1 and reads_once(task, model, train) else epochs
    speed, training, evaluating = None, None, None
    if measure:
        speed = _measured(recipe, task, model, train, validation, device, per_token, each)
        training = per_epoch * passes / speed.training_tokens_per_second
        rate = speed.evaluation_tokens_per_second
        looked_at = 0 if validation is None else evaluations * int(validation.lengths.sum())
        evaluating = looked_at / rate if rate else 0.0
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    parameters = sum(count for count, _ in counts)
    # Last, as it takes the values of the model away.
    largest = max(batches, key=lambda which: int(train.lengths[which].sum()))
    memory, process = _memory(recipe, model, train.sequences(largest), validation)
    return RunPlan(
        examples=len(train),
        validation_examples=0 if validation is None else len(validation),
        tokens_per_epoch=per_epoch,
        truncated=train.truncated,
        updates=updates,
        epochs=epochs,
        evaluations=evaluations,
        tokens=round(per_epoch * epochs),
        parameters=parameters,
        trained=sum(count for count, learns in counts if learns),
        flops_per_token=per_token,
        flops=round(per_token * per_epoch * passes),
        memory=memory,
        process_bytes=process,
        checkpoint_bytes=FLOAT * parameters,
        speed=speed,
        training_seconds=training,
        evaluation_seconds=evaluating,
        reading_seconds=reading,
    )


def measure_speed(recipe: Recipe) -> Speed:
    """The pace of a few updates of a recipe, and nothing else; FLOPs are not counted.

    Raises:
        PretuneError: bad data or model, as in training.
    """
    device = choose_device(recipe.train.device)
    task, bundle, train, _ = _prepared(recipe)
    model = bundle.model.to(device)
    each = len(_first_epoch(_trainer(recipe, task, model, train, device)))
    return _measured(recipe, task, model, train, None, device, 0, each)


def _prepared(recipe: Recipe) -> tuple[AnyTask, Bundle, Features, Features | None]:
    """Data and model as a run has them before its first update."""
    records, held_out = read_data(recipe)
    task = task_class(recipe.task.name)(recipe.task)
    fit(task, records)
    seed_everything(recipe.seed)
    bundle = starting_model(recipe, task, records)
    cache = FeatureCache.usual()
    train = featurize(task, records, bundle.tokenizer, cache=cache)
    validation = None
    if held_out is not None:
        validation = featurize(task, held_out, bundle.tokenizer, evaluation=True, cache=cache)
    return task, bundle, train, validation


def _trainer(
    recipe: Recipe,
    task: AnyTask,
    model: nn.Module,
    train: Features,
    device: torch.device,
    **others: Any,
) -> Trainer:
    options = recipe.train.model_copy(update={"log_every": 1, **others.pop("options", {})})
    return Trainer(
        task, model, train, None, options=options, seed=recipe.seed, device=device, **others
    )


def _first_epoch(trainer: Trainer) -> list[Any]:
    """The features of each whole batch of the first epoch."""
    at, found = Cursor(), []
    while at.epoch == 0:
        which, at = trainer.order.take(at, trainer.sizes.whole)
        found.append(which)
    return found


def _flops_per_token(model: nn.Module, length: int) -> int:
    """Forward, and twice that backward as far down as anything learns."""
    flops = count_flops(model, length)
    return round(flops.per_sequence / length * (1 + 2 * _backward_share(model)))


def _backward_share(model: nn.Module) -> float:
    """The share of layers the backward pass goes through: down to the lowest that learns."""
    backbone = backbone_of(model)
    if any(p.requires_grad for p in backbone.embeddings.parameters()):
        return 1.0
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in backbone.layers]
    return (len(learns) - learns.index(True)) / len(learns) if any(learns) else 0.0


class _Rates:
    """Keeps the tokens a second of each update."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        self.found.append(figures["train/tokens_per_second"])

    def rewind(self, step: int) -> None:
        """Nothing is to be undone."""

    def close(self) -> None:
        """Nothing is open."""


def _measured(
    recipe: Recipe,
    task: AnyTask,
    model: nn.Module,
    train: Features,
    validation: Features | None,
    device: torch.device,
    flops_per_token: int,
    most: int,
) -> Speed:
    """Do a few updates, and run over some validation data."""
    rates = _Rates()
    end = time.perf_counter() + SECONDS

    def enough() -> bool:
        return len(rates.found) >= WARM + FEWEST and time.perf_counter() >= end

    # A frozen backbone is read once for all epochs; within one epoch, `most`, its pace shows.
    trainer = _trainer(
        *(recipe, task, model, train, device),
        options={"max_steps": min(recipe.train.max_steps or most, most)},
        reporter=Reporter((rates,), quiet=True),
        should_stop=enough,
    )
    with suppress(Stopped):
        trainer.fit()
    counted = rates.found[WARM:] or rates.found[-1:]
    # Seconds a token are what adds up, so it is those whose mean is taken.
    training = statistics.harmonic_mean(counted)
    evaluation = None
    if validation is not None:
        evaluation = _forward_rate(recipe, task, model, validation, device)
    return Speed(str(device), len(counted), training, evaluation, training * flops_per_token)


@torch.inference_mode()
def _forward_rate(
    recipe: Recipe, task: AnyTask, model: nn.Module, features: Features, device: torch.device
) -> float:
    """Tokens a second in evaluation, over batches of all lengths."""
    model.eval()
    strategy = strategy_for(task, model, features)
    (batches,) = strategy.batches(features.lengths, recipe.train.eval_batch_tokens)
    order = [batches[i] for i in _spread(len(batches))]
    tokens, seconds = 0, 0.0
    for i, which in enumerate([order[0], *order]):
        start = time.perf_counter()
        batch = drawn(task, features.batch(which), seed=0, epoch=-1).to(device)
        with precision_context(device, recipe.train.precision):
            outputs = strategy.forward(model, batch)
            strategy.commit()
            float(task.loss(outputs, batch).sum)
            with_answers(task, model, outputs, batch)
        if i == 0:  # warm
            continue
        seconds += time.perf_counter() - start
        tokens += int(features.lengths[which].sum())
        if seconds > SECONDS / 2:
            break
    return tokens / max(seconds, 1e-9)


def _spread(count: int, most: int = 8) -> list[int]:
    """Some of `count` places, from all over."""
    return sorted({i * count // most for i in range(most)})


def _memory(
    recipe: Recipe, model: nn.Module, lengths: Array, validation: Features | None
) -> tuple[Memory, int]:
    """Of a batch with sequences of these lengths, and of the whole process.

    What is frozen has neither gradient nor moments. Afterwards the model has no values any more.
    """
    model.to("meta")
    looked_at = 0
    if validation is not None:
        most = min(recipe.train.eval_batch_tokens, int(validation.lengths.sum()))
        length = max(1, round(float(validation.sequences(np.arange(len(validation))).mean())))
        looked_at = estimate_memory(model, max(1, most // length), length).forward
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    still = sum(table.numel() for table in tables if not table.requires_grad)
    batch = math.ceil(len(lengths) / recipe.train.accumulate)
    found = estimate_memory(model, batch, math.ceil(float(lengths.mean())))
    found = replace(
        found,
        gradients=found.gradients - FLOAT * frozen,
        optimizer=found.optimizer - FLOAT * MOMENTS * frozen,
        training=found.training - FLOAT * (MOMENTS * frozen + still),
    )
    # While training, freed memory stays with the process, in blocks of other sizes than evaluation
    # asks for.
    uneven = round((UNEVEN_SLACK - TRAINING_SLACK) * found.step)
    return found, BASE + found.training + uneven + round(INFERENCE_SLACK * looked_at)
