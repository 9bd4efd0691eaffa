"""The training loop: one for every task and every model.

for each update:
    gradients of the *sum* of the loss over the batch, in parts if asked
    one division, by the count of the whole batch (train/optim.py)
    AdamW with the scheduled learning rate
now and then: evaluate, and keep the last and the best model
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pretune.data import FeatureSet, PackedBatch, batches_by_length, epoch_batches
from pretune.errors import RunError, did_you_mean
from pretune.models import PooledHead
from pretune.recipe_train import TrainSection
from pretune.tasks import AnyTask, Task
from pretune.training.evaluate import Evaluation, evaluate_features, precision_context
from pretune.training.freeze import backbone_is_frozen, train_mode
from pretune.training.log import Reporter, Step
from pretune.training.memory import reusing_memory
from pretune.training.optim import Optimizer
from pretune.training.schedule import rate_factor, warmup_updates

Indices = NDArray[np.int64]


def seed_everything(seed: int) -> None:
    """Seed every generator that new weights and dropout draw from; the data order needs none."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that still use it
    torch.manual_seed(seed)


class Stopped(Exception):  # noqa: N818 - not an error
    """Somebody asked the training to stop; the last model is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} updates")
        self.step = step


@dataclass
class Course:
    """How a training went.

    Attributes:
        steps: updates done.
        tokens: trained on, over all epochs.
        examples: sequences trained on, over all epochs.
        seconds: spent in training steps, evaluation and saving not counted.
        evaluations: (step, epoch, metrics) of each.
        best_step: which of them was best.
        best: its evaluation.
    """

    steps: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    evaluations: list[tuple[int, float, dict[str, float]]] = field(default_factory=list)
    best_step: int | None = None
    best: Evaluation | None = None


@dataclass
class _Window:
    """What was summed up since the last entry of the log."""

    sum: float = 0.0
    count: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a model on features, by the `train:` section of a recipe.

    Args:
        task: gives the loss and the metrics.
        model: already on `device`.
        train: the training features.
        validation: evaluated now and then, or None.
        options: how to train.
        seed: of the data order.
        device: where the model is.
        reporter: shows and keeps the course.
        save: `(step, is_best)` is called after each evaluation, at the end, and when stopped.
        should_stop: asked after each update.

    Raises:
        RunError: nothing to train on, or no such metric as `train.best`.
    """

    def __init__(
        self,
        task: AnyTask,
        model: nn.Module,
        train: FeatureSet,
        validation: FeatureSet | None = None,
        *,
        options: TrainSection,
        seed: int = 0,
        device: torch.device | None = None,
        reporter: Reporter | None = None,
        save: Callable[[int, bool], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if len(train) == 0:
            raise RunError("there is nothing to train on", "Give data.train more records.")
        self.task, self.model, self.options, self.seed = task, model, options, seed
        self.train, self.validation = train, validation
        self.device = device or torch.device("cpu")
        self.reporter = reporter or Reporter(quiet=True)
        self.course = Course()
        self._save = save or (lambda step, best: None)
        self._should_stop = should_stop
        self._best_by = options.best or task.best_by
        self._window = _Window()
        self.optimizer = Optimizer(
            model,
            weight_decay=options.weight_decay,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            clip=options.clip,
            layer_decay=options.layer_decay,
        )
        self._kept: Tensor | None = None
        self.total = options.max_steps or self._updates_in(options.epochs)
        self.warmup = warmup_updates(options.warmup, self.total)
        self.epoch = 0.0
        if validation is not None:
            self._check_metric()

    def fit(self) -> Course:
        """Train to the end.

        Raises:
            Stopped: `should_stop` said so; the model was saved.
            RunError: the loss is not finite. Nothing of that update is applied.
        """
        train_mode(self.model)
        start = time.perf_counter()
        self._kept = self._read_once()
        self.course.seconds += time.perf_counter() - start
        self.reporter.begin(self.total)
        with reusing_memory(self.device.type == "cpu"):
            self._run()
        return self.course

    def _run(self) -> None:
        epoch = 0
        while self.course.steps < self.total:
            batches = self._batches(epoch)
            for i, which in enumerate(batches, start=1):
                self.epoch = epoch + i / len(batches)
                self._update(which)
                step = self.course.steps
                due = self._eval_due(last_of_epoch=i == len(batches))
                if due:
                    self._evaluate_and_save()
                if self._should_stop() and step < self.total:
                    if not due:
                        self._save(step, False)
                    raise Stopped(step)
                if step == self.total:
                    break
            epoch += 1

    def _updates_in(self, epochs: float) -> int:
        """With a token budget, not every epoch has equally many batches."""
        whole, part = int(epochs), epochs - int(epochs)
        updates = sum(len(self._batches(epoch)) for epoch in range(whole))
        if part:
            updates += math.ceil(part * len(self._batches(whole)))
        return updates

    def _batches(self, epoch: int) -> list[Indices]:
        return epoch_batches(
            self.train.lengths,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.options.batch_size,
            batch_tokens=self.options.batch_tokens,
        )

    def _update(self, which: Indices) -> None:
        """One optimizer step on one batch."""
        start = time.perf_counter()
        total, count = self._gradients(which)
        norm = self.optimizer.gradient_norm()
        if not math.isfinite(total) or not math.isfinite(float(norm)):
            raise self._diverged(total, float(norm))
        step = self.course.steps
        factor = rate_factor(
            step, self.total, self.warmup, self.options.schedule, self.options.floor
        )
        rate = self.options.learning_rate * factor
        self.optimizer.step(rate, count, norm)
        self.course.steps += 1
        tokens = int(self.train.lengths[which].sum())
        self.course.tokens += tokens
        self.course.examples += len(which)
        self._window.tokens += tokens
        seconds = time.perf_counter() - start
        self.course.seconds += seconds
        self._window.seconds += seconds
        if self.course.steps % self.options.log_every == 0 or self.course.steps == self.total:
            self._log(rate, float(norm) / count)

    def _gradients(self, which: Indices) -> tuple[float, int]:
        """Add up the gradients of the sum of the loss; gives that sum and its count."""
        sums: list[Tensor] = []
        count = 0
        for part in np.array_split(which, min(self.options.accumulate, len(which))):
            batch = self.train.batch(part).to(self.device)
            with precision_context(self.device, self.options.precision):
                loss = self.task.loss(self._outputs(batch), batch)
            loss.sum.backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sum.detach())
            count += loss.count
            for name, value in loss.parts.items():
                known = self._window.parts.get(name, 0.0)
                self._window.parts[name] = known + float(value.detach())
        total = float(torch.stack(sums).sum())
        self._window.sum += total
        self._window.count += count
        return total, count

    def _outputs(self, batch: PackedBatch) -> Any:
        if self._kept is None:
            return self.task.forward(self.model, batch)
        assert isinstance(self.model, PooledHead)  # noqa: S101 - for the type checker
        return self.model.answer(self._kept[batch.index.to(self.device)])

    @torch.no_grad()
    def _read_once(self) -> Tensor | None:
        """`[N, hidden]`: what a frozen backbone gives for each feature, the same in every epoch.

        None where it learns, where the head reads more than one vector a sequence, or where each
        feature is seen only once anyway.
        """
        usual = type(self.task).forward is Task.forward
        worth = self.total > self._updates_in(1)
        if not (isinstance(self.model, PooledHead) and usual and worth):
            return None
        if not backbone_is_frozen(self.model):
            return None
        kept: Tensor | None = None
        with self.reporter.working("reading once", len(self.train)) as done:
            seen = 0
            for which in batches_by_length(self.train.lengths, self.options.eval_batch_tokens):
                batch = self.train.batch(which).to(self.device)
                with precision_context(self.device, self.options.precision):
                    read = self.model.read(batch)
                if kept is None:
                    kept = read.new_empty(len(self.train), read.shape[1])
                kept[batch.index.to(self.device)] = read
                seen += len(which)
                if done is not None:
                    done(seen)
        return kept

    def _diverged(self, total: float, norm: float) -> RunError:
        what = "the loss" if not math.isfinite(total) else "the gradient"
        value = total if not math.isfinite(total) else norm
        step = self.course.steps
        return RunError(
            f"{what} is {value} in update {step + 1} of {self.total}; the update was not applied",
            f"Lower train.learning_rate (now {self.options.learning_rate:g})"
            + ("." if self.options.clip else ", and set train.clip=1.0."),
        )

    def _log(self, rate: float, norm: float) -> None:
        window, self._window = self._window, _Window()
        count = max(window.count, 1)
        entry = Step(
            step=self.course.steps,
            epoch=self.epoch,
            loss=window.sum / count,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=window.tokens / max(window.seconds, 1e-9),
            parts={name: value / count for name, value in window.parts.items()},
        )
        self.reporter.step(entry, self.total)

    def _eval_due(self, *, last_of_epoch: bool) -> bool:
        step, every = self.course.steps, self.options.eval_every
        due = last_of_epoch if every == "epoch" else step % every == 0
        return due or step == self.total

    def _evaluate_and_save(self) -> None:
        """Evaluate on the validation data and keep the model."""
        step, is_best = self.course.steps, False
        if self.validation is not None:
            found = evaluate_features(
                self.task,
                self.model,
                self.validation,
                batch_tokens=self.options.eval_batch_tokens,
                device=self.device,
                precision=self.options.precision,
            )
            is_best = self._better(found)
            if is_best:
                self.course.best, self.course.best_step = found, step
            self.course.evaluations.append((step, self.epoch, found.metrics))
            note = "  best so far" if is_best else ""
            self.reporter.evaluation(step, self.epoch, found.metrics, found.seconds, note)
        self._save(step, is_best)

    def _check_metric(self) -> None:
        known = ["loss", *self.task.metrics().result()]
        if self._best_by not in known:
            raise RunError(
                f"train.best: no metric is called '{self._best_by}'",
                did_you_mean(self._best_by, known),
            )

    def _better(self, found: Evaluation) -> bool:
        if self.course.best is None:
            return True
        new, old = found.metrics[self._best_by], self.course.best.metrics[self._best_by]
        return new < old if self._best_by == "loss" else new > old
