"""Plan a training before it starts: data, updates, FLOPs, memory, disk and hours.

The data is read and tokenized as the run would do it. The time comes from a few real updates on a
copy of the model, on the run's own first batches: the peak rate of a machine does not tell how much
a small model reaches. Where nothing is timed, only the sizes of the model are read: it has no
values, and a model that this machine could not hold is planned as any other.
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
from typing_extensions import override

from pretune.bundle.bundle import Bundle
from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet
from pretune.data.batch_order import Cursor
from pretune.data.records import Records
from pretune.errors import RunError
from pretune.experiments.cluster import ClusterOptions, ClusterPlan, Workload, plan_cluster
from pretune.experiments.costs import (
    FLOAT,
    INFERENCE_SLACK,
    MOMENTS,
    TRAINING_SLACK,
    Memory,
    count_flops,
    estimate_memory,
)
from pretune.inference.reference import BATCH_TOKENS, with_scores, with_targets
from pretune.inference.rewards import reward_function
from pretune.inference.runtime import choose_device, precision_context
from pretune.inference.strategies import strategy_for
from pretune.models.backbone import backbone_of
from pretune.recipe.recipe import Recipe
from pretune.tasks.base import (
    AnyTask,
    ComparesWithReference,
    HasReference,
    MakesExperience,
    drawn,
    with_answers,
)
from pretune.tasks.distillation.taught import Taught
from pretune.tasks.distillation.teachable import TeachableRecord
from pretune.tasks.features import FeatureCache, featurize
from pretune.training.data import Data, fit, read_data
from pretune.training.freeze import reads_once
from pretune.training.logging import Reporter, Sink
from pretune.training.loop import Trainer
from pretune.training.reference_scores import holds_reference
from pretune.training.run import starting_model
from pretune.training.state import seed_everything
from pretune.training.stop import Stopped
from pretune.training.teaching import Lessons, student_task

#: Updates before the timed ones (the first ones allocate memory), timed updates at least, and the
#: seconds after which no further update begins.
WARM_UP, MIN_UPDATES, SECONDS = 2, 5, 8.0
#: Bytes of Python, PyTorch and the tokenizer.
BASE = 310 * 2**20
#: `TRAINING_SLACK` for batches of uneven lengths, whose blocks fit less well into the holes of
#: earlier ones. Measured (glibc 2.36, MiniLM on MRPC, batches of 32 and 64: 1.88 and 1.85).
UNEVEN_SLACK = 1.87
#: Batches on which evaluation is timed at most.
EVALUATION_BATCHES = 8
#: Records on which a teacher is timed at most.
TEACHER_RECORDS = 128


@dataclass(frozen=True)
class Speed:
    """The speed of this machine, measured by real updates."""

    device: str
    updates: int
    training_tokens_per_second: float
    evaluation_tokens_per_second: float | None  # None without validation data
    flops_per_second: float


@dataclass(frozen=True)
class RunPlan:
    """What a run will take."""

    examples: int  # training sequences of an epoch; a long record may give several
    validation_examples: int
    tokens_per_epoch: int
    truncated: int  # training sequences whose text is cut
    updates: int
    epochs: float
    evaluations: int
    tokens: int  # tokens trained on, over all epochs
    parameters: int
    trained: int
    flops_per_token: int  # forward and backward, at the mean length
    flops: int
    memory: Memory  # of the largest batch, in float32 on a CPU
    process_bytes: int  # estimated peak of the whole process, evaluation included
    checkpoint_bytes: int
    speed: Speed | None
    training_seconds: float | None  # of all updates; None if nothing was measured
    evaluation_seconds: float | None
    reading_seconds: float  # of reading and tokenizing the data
    # Of running the teacher once, before training; None where it is not timed by itself: one that
    # reads each batch is part of the training.
    teacher_seconds: float | None
    teacher_bytes: int  # the teacher's share of `process_bytes`; 0 without one
    cluster: ClusterPlan | None = None  # on other machines, if any were asked about

    @property
    def hours(self) -> float | None:
        """Time from start to end without writing checkpoints; None if nothing was measured."""
        if self.training_seconds is None:
            return None
        parts = (self.training_seconds, self.evaluation_seconds, self.teacher_seconds)
        seconds = self.reading_seconds + sum(part or 0 for part in parts)
        return seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON; memory in bytes."""
        values = {**asdict(self), "hours": self.hours}
        del values["cluster"]
        return values if self.cluster is None else {**values, "cluster": self.cluster.to_dict()}


@dataclass
class _Start:
    """A run as it is before its first update."""

    recipe: Recipe
    device: torch.device
    task: AnyTask
    model: nn.Module
    train: Features
    validation: Features | None
    bundle: Bundle  # of the model
    records: Data
    lessons: Lessons | None

    def trainer(self, changes: Mapping[str, Any] | None = None, **arguments: Any) -> Trainer:
        """Make a trainer that logs every update, with changed training options."""
        options = self.recipe.train.model_copy(update={"log_every": 1, **(changes or {})})
        arguments |= {"options": options, "seed": self.recipe.seed, "device": self.device}
        return Trainer(self.task, self.model, self.train, None, **arguments)


def plan_run(
    recipe: Recipe, *, measure: bool = True, cluster: ClusterOptions | None = None
) -> RunPlan:
    """Work out what training a recipe takes.

    Nothing is written. Bad data or a bad model raise a PretuneError, as in training.

    Args:
        recipe: of the run.
        measure: time a few updates on this machine.
        cluster: other machines, to plan for on paper.
    """
    start = time.perf_counter()
    # The recipe's own device is among those that it is planned for.
    here = recipe if cluster is None else recipe.changed({"train.device": "cpu"})
    run = _prepare(here, hollow=not measure)
    reading = time.perf_counter() - start
    model, train = run.model, run.train
    # Data and updates. The trainer itself tells the number of updates and the batches of an epoch.
    trainer = run.trainer()
    updates, batches = trainer.total, _first_epoch(trainer)
    per_epoch = int(train.lengths.sum())
    epochs = updates / len(batches) if recipe.train.max_steps is not None else recipe.train.epochs
    every = recipe.train.eval_every
    evaluations = math.ceil(epochs) if every == "epoch" else math.ceil(updates / every)
    at_start = isinstance(run.task, HasReference) or recipe.train.eval_at_start or not updates
    evaluations += run.validation is not None and at_start  # before the first update
    per_token = _flops_per_token(model, max(1, round(per_epoch / len(train))))
    # A frozen backbone is run once, and its outputs are kept for all epochs.
    passes = 1.0 if epochs > 1 and reads_once(run.task, model, train) else epochs
    # Time, by the speed of a few real updates.
    speed, training, evaluating, teaching = None, None, None, None
    if measure and updates:
        speed = _measure(run, per_token, len(batches))
        training = per_epoch * passes / speed.training_tokens_per_second
        rate = speed.evaluation_tokens_per_second
        evaluated = 0 if run.validation is None else int(run.validation.lengths.sum())
        evaluating = evaluations * evaluated / rate if rate else 0.0
        teaching = _teacher_seconds(run)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    parameters = sum(count for count, _ in counts)
    # The memory comes last, as estimating it takes the values of the model away.
    largest = max(batches, key=lambda which: int(train.lengths[which].sum()))
    memory, process = _memory(run, train.sequences(largest))
    teacher = _teacher_bytes(run, memory, process)
    process += teacher
    others = teacher
    if holds_reference(run.task, recipe, validated=run.validation is not None):
        process += FLOAT * parameters
        others += FLOAT * parameters
    plan = RunPlan(
        examples=len(train),
        validation_examples=0 if run.validation is None else len(run.validation),
        tokens_per_epoch=per_epoch,
        truncated=train.truncated,
        updates=updates,
        epochs=epochs,
        evaluations=evaluations,
        tokens=round(per_epoch * epochs),
        parameters=parameters,
        trained=sum(count for count, trained in counts if trained),
        flops_per_token=per_token,
        flops=round(per_token * per_epoch * passes),
        memory=memory,
        process_bytes=process,
        checkpoint_bytes=FLOAT * parameters,
        speed=speed,
        training_seconds=training,
        evaluation_seconds=evaluating,
        reading_seconds=reading,
        teacher_seconds=teaching,
        teacher_bytes=teacher,
    )
    if cluster is None:
        return plan
    share = _backward_share(model)
    work = _workload(run, plan, passes, share, train.sequences(largest), others)
    return replace(plan, cluster=plan_cluster(cluster, recipe, model, work))


def _workload(
    run: _Start, plan: RunPlan, passes: float, backward: float, largest: Array, others: int
) -> Workload:
    """Return what a run computes, for other machines.

    Args:
        run: read.
        plan: for this machine.
        passes: over the data, of the model.
        backward: the share of layers that the backward pass reaches.
        largest: lengths of the sequences of the largest batch.
        others: bytes of models beside the one that learns.
    """
    validation = run.validation
    evaluated = 0 if validation is None else int(validation.lengths.sum())
    return Workload(
        updates=plan.updates,
        tokens=plan.tokens,
        computed=plan.tokens_per_epoch * passes,
        flops_per_token=plan.flops_per_token,
        forward_share=1 / (1 + 2 * backward),
        sequences=plan.examples * plan.epochs / max(plan.updates, 1),
        largest=largest,
        evaluated=plan.evaluations * evaluated,
        others=others,
    )


def measure_speed(recipe: Recipe) -> Speed:
    """Time a few updates of a recipe; evaluation is not timed and FLOPs are not counted."""
    run = _prepare(recipe)
    run.validation = None
    return _measure(run, 0, len(_first_epoch(run.trainer())))


def _prepare(recipe: Recipe, *, hollow: bool = False) -> _Start:
    """Read data and model as a run does before its first update.

    Args:
        recipe: of the run.
        hollow: leave the model without values, unless a teacher has to answer beside it.
    """
    device = choose_device(recipe.train.device)
    task = student_task(recipe)
    if isinstance(task, MakesExperience):
        raise RunError(
            f"{task.name} trains on replies that the model first writes: how many tokens they have "
            "is not known before",
            "Start the run with train.max_steps=20: its log tells how long updates take.",
        )
    records, held_out = read_data(recipe)
    fit(task, records)
    seed_everything(recipe.seed)
    hollow = hollow and not isinstance(task, Taught)
    bundle = starting_model(recipe, task, records, hollow=hollow)
    cache = FeatureCache.usual()
    train = featurize(task, records, bundle.tokenizer, cache=cache)
    validation = None
    if held_out is not None:
        validation = featurize(task, held_out, bundle.tokenizer, evaluation=True, cache=cache)
    model = bundle.model if hollow else bundle.model.to(device)
    # The model takes as long as its reference, which is not loaded.
    if isinstance(task, HasReference):
        task.reference_model = model
        if task.judge is not None:
            task.judging = reward_function(
                task.judge, device=device, tokenizer=bundle.tokenizer, key="judge"
            )
    train = _scored(task, model, train)
    if validation is not None:
        validation = _scored(task, model, validation)
    run = _Start(recipe, device, task, model, train, validation, bundle, records, None)
    if isinstance(task, Taught):
        _find_teacher(run, task, held_out)
    return run


def _scored(task: AnyTask, model: nn.Module, features: Features) -> Features:
    """Give features the scores of the first of them in the place of those of a reference.

    A model without values has none to give, and is not timed.
    """
    if not isinstance(task, ComparesWithReference) or not isinstance(task, HasReference):
        return features
    if task.reference is None or not len(features) or next(model.parameters()).is_meta:
        return features
    batch = features.batch(np.zeros(1, dtype=np.int64)).to(next(model.parameters()).device)
    with torch.no_grad():
        scores = task.reference_scores(model, batch).float().cpu().numpy()
    return with_scores(features, np.repeat(scores, len(features), axis=0))


def _first_epoch(trainer: Trainer) -> list[Array]:
    """List the features of each batch of the first epoch."""
    cursor, batches = Cursor(), []
    while cursor.epoch == 0:
        which, cursor = trainer.order.take(cursor, trainer.sizes.whole)
        batches.append(which)
    return batches


def _flops_per_token(model: nn.Module, length: int) -> int:
    """Count the operations of training: forward, and twice as many backward where it goes."""
    flops = count_flops(model, length)
    return round(flops.per_sequence / length * (1 + 2 * _backward_share(model)))


def _backward_share(model: nn.Module) -> float:
    """Return the share of layers that the backward pass reaches: down to the lowest trained."""
    backbone = backbone_of(model)
    if any(p.requires_grad for p in backbone.embeddings.parameters()):
        return 1.0
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in backbone.layers]
    return (len(trained) - trained.index(True)) / len(trained) if any(trained) else 0.0


class _Rates(Sink):
    """A log that keeps the tokens per second of each update."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @override
    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        self.values.append(figures["train/tokens_per_second"])

    @override
    def rewind(self, step: int) -> None:
        pass

    @override
    def close(self) -> None:
        pass


def _measure(run: _Start, flops_per_token: int, batches: int) -> Speed:
    """Time a few updates, which change the model, and the evaluation of some validation data."""
    rates = _Rates()
    end = time.perf_counter() + SECONDS

    def enough() -> bool:
        return len(rates.values) >= WARM_UP + MIN_UPDATES and time.perf_counter() >= end

    # A frozen backbone is run once for all epochs, so only the first epoch shows its pace.
    trainer = run.trainer(
        {"max_steps": min(run.recipe.train.max_steps or batches, batches)},
        reporter=Reporter((rates,), quiet=True),
        should_stop=enough,
    )
    with suppress(Stopped):
        trainer.fit()
    timed = rates.values[WARM_UP:] or rates.values[-1:]
    # The seconds per token of the updates add up, hence the harmonic mean of their rates.
    training = statistics.harmonic_mean(timed)
    evaluation = None if run.validation is None else _evaluation_rate(run, run.validation)
    return Speed(str(run.device), len(timed), training, evaluation, training * flops_per_token)


@torch.inference_mode()
def _evaluation_rate(run: _Start, features: Features) -> float:
    """Return the tokens per second of evaluation, over batches of all lengths."""
    model, task, train = run.model.eval(), run.task, run.recipe.train
    strategy = strategy_for(task, model, features)
    (batches,) = strategy.batches(features.lengths, train.eval_batch_tokens)
    places = {i * len(batches) // EVALUATION_BATCHES for i in range(EVALUATION_BATCHES)}
    order = [batches[place] for place in sorted(places)]
    tokens, seconds = 0, 0.0
    for i, which in enumerate([order[0], *order]):
        start = time.perf_counter()
        batch = drawn(task, features.batch(which), seed=0, epoch=-1).to(run.device)
        with precision_context(run.device, train.precision):
            outputs = strategy.forward(model, batch)
            strategy.commit()
            float(task.loss(outputs, batch).sum)
            with_answers(task, model, outputs, batch)
        # The first pass, over a batch that comes again, only warms up.
        if i == 0:
            continue
        seconds += time.perf_counter() - start
        tokens += int(features.lengths[which].sum())
        if seconds > SECONDS / 2:
            break
    return tokens / max(seconds, 1e-9)


def _find_teacher(run: _Start, task: Taught, held_out: Data | None) -> None:
    """Load the teacher of a recipe, and let the updates learn from it as in the run."""
    run.lessons = Lessons.of(
        run.recipe, run.task, run.bundle, (run.train, run.validation), run.device
    )
    task.teaching = run.lessons.how
    if isinstance(held_out, Records) and not task.labelled(held_out):
        task.without_labels()
    # A teacher that reads each batch takes its time in the updates that are timed.
    if not run.lessons.kept:
        task.live = run.lessons.live()
        return
    # One that is asked once says the same of all here: what it says takes no other time.
    assert isinstance(run.records, Records)  # noqa: S101 - else nothing is kept
    given = run.lessons.outputs(*_few(run, run.records))
    run.train = _told(run.task, run.train, given)
    if run.validation is not None:
        run.validation = _told(run.task, run.validation, given)


def _few(run: _Start, records: Records) -> tuple[FeatureSet, Records]:
    """Return features of some records, and these."""
    few = records.head(TEACHER_RECORDS)
    features = featurize(run.task, few, run.bundle.tokenizer)
    assert isinstance(features, FeatureSet)  # noqa: S101 - of records
    return features, few


def _told(task: AnyTask, features: Features, given: Mapping[str, Array]) -> Features:
    """Give features, or each of their tokens, the last thing that a teacher says."""
    assert isinstance(features, FeatureSet)  # noqa: S101 - else nothing is kept
    count = len(features) if isinstance(task, TeachableRecord) else len(features.tokens)
    told = {n: np.broadcast_to(v[-1:], (count, *v.shape[1:])) for n, v in given.items()}
    return with_targets(features, told)


def _teacher_seconds(run: _Start) -> float | None:
    """Time the teacher on a few records, and return what all of them take, once."""
    lessons, records = run.lessons, run.records
    if lessons is None or not lessons.kept or not isinstance(records, Records):
        return None
    features, few = _few(run, records)
    start = time.perf_counter()
    lessons.outputs(features, few)
    seconds = time.perf_counter() - start
    sets = [own for own in (run.train, run.validation) if own is not None]
    tokens = sum(int(own.lengths.sum()) for own in sets)
    return seconds * tokens / max(1, int(features.lengths.sum()))


def _teacher_bytes(run: _Start, memory: Memory, process: int) -> int:
    """Return what the teacher adds to the peak of the process; its parameters lose their values.

    A teacher that is asked once is gone before the training begins.
    """
    if run.lessons is None:
        return 0
    weights = forward = 0
    for bundle in run.lessons.bundles:
        model = bundle.model.to("meta").requires_grad_()  # an estimate is also of training
        weights += FLOAT * sum(parameter.numel() for parameter in model.parameters())
        # Once, it reads large batches; else those of the training.
        count = BATCH_TOKENS // memory.length if run.lessons.kept else memory.batch
        own = estimate_memory(model, max(1, count), memory.length).forward
        forward = max(forward, round(INFERENCE_SLACK * own))
    if not run.lessons.kept:
        return weights + forward
    return max(0, BASE + memory.weights + weights + forward - process)


def _memory(run: _Start, lengths: Array) -> tuple[Memory, int]:
    """Estimate the memory of a batch with sequences of these lengths, and of the whole process.

    Afterwards the parameters of the model have no values any more.
    """
    model, train = run.model.to("meta"), run.recipe.train
    # Evaluation: as many sequences of the mean length as fit into its batches.
    evaluated = 0
    if (validation := run.validation) is not None:
        tokens = min(train.eval_batch_tokens, int(validation.lengths.sum()))
        length = max(1, round(float(validation.sequences(np.arange(len(validation))).mean())))
        evaluated = estimate_memory(model, max(1, tokens // length), length).forward
    batch = math.ceil(len(lengths) / train.accumulate)
    memory = estimate_memory(model, batch, math.ceil(float(lengths.mean())))
    # What is frozen has neither gradients nor moments, and a frozen table no gradient of rows.
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    frozen_tables = sum(table.numel() for table in tables if not table.requires_grad)
    memory = replace(
        memory,
        gradients=memory.gradients - FLOAT * frozen,
        optimizer=memory.optimizer - FLOAT * MOMENTS * frozen,
        training=memory.training - FLOAT * (MOMENTS * frozen + frozen_tables),
    )
    # While training, freed memory stays with the process, in blocks of other sizes than evaluation
    # asks for.
    uneven = round((UNEVEN_SLACK - TRAINING_SLACK) * memory.step)
    return memory, BASE + memory.training + uneven + round(INFERENCE_SLACK * evaluated)
