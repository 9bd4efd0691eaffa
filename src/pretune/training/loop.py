"""The training loop: one for every task and every model.

for each update:
    gradients of the *sum* of the loss over the batch, in parts if asked
    are the numbers sane? (training/guard.py)
    one division, by the count of the whole batch (training/optim.py)
    AdamW with the scheduled learning rate
now and then: evaluate, and keep the last and the best model

Everything a run depends on between two updates is in `Trainer.state`; what comes next is a function
of that alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pretune.data.batch import Features, PackedBatch
from pretune.data.batch_order import Cursor, DataOrder
from pretune.data.prefetch import prefetched
from pretune.errors import RunError, did_you_mean
from pretune.inference.runtime import precision_context
from pretune.models.heads.pooled import PooledHead
from pretune.recipe.train_section import TrainSection
from pretune.tasks.added_metrics import AllMetrics
from pretune.tasks.base import AnyTask, drawn
from pretune.training.distributed import World, is_sharded, load_weights
from pretune.training.ema import MovingAverage
from pretune.training.freeze import read_once, train_mode
from pretune.training.guard import Guard, Trouble
from pretune.training.jobs import Job, Share, share_out
from pretune.training.logging import Reporter, Step
from pretune.training.memory import reusing_memory
from pretune.training.optimizer import Optimizer
from pretune.training.rescue import rescue
from pretune.training.schedule import Schedule, planned_updates
from pretune.training.state import (
    Course,
    Keeper,
    NothingKept,
    Saved,
    State,
    Window,
    all_generators,
    restore_all_generators,
)
from pretune.training.truncated_bptt import Carry
from pretune.training.validation import better, evaluate_features


class Stopped(Exception):  # noqa: N818 - not an error
    """Somebody asked the training to stop; the last model is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} updates")
        self.step = step


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
        keeper: is given the model after each evaluation, every `save_every` updates, at the end,
            and when stopped.
        should_stop: asked in each update.
        name_record: names a training record for people, by its number.
        world: the processes that train together.

    Raises:
        RunError: nothing to train or to evaluate on, or no such metric as `train.best`.
    """

    def __init__(
        self,
        task: AnyTask,
        model: nn.Module,
        train: Features,
        validation: Features | None = None,
        *,
        options: TrainSection,
        seed: int = 0,
        device: torch.device | None = None,
        reporter: Reporter | None = None,
        keeper: Keeper | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        name_record: Callable[[int], str] = "record {}".format,
        world: World | None = None,
    ) -> None:
        if len(train) == 0:
            raise RunError("there is nothing to train on", "Give data.train more records.")
        if validation is not None and len(validation) == 0:
            raise RunError("there is nothing to evaluate on", "Give other data.validation.")
        self.task, self.model, self.options, self.seed = task, model, options, seed
        self.train, self.validation = train, validation
        self.device = device or torch.device("cpu")
        self.reporter = reporter or Reporter(quiet=True)
        self.world = world or World()
        self.name_record = name_record
        self.keeper = keeper or NothingKept()
        self._should_stop = should_stop
        self._best_by = options.best or task.best_by
        self.carry = Carry.of(task, model, train)
        if self.carry is not None:
            self.order = self.carry.order(train.lengths, options, seed)
        else:
            in_tokens = options.batch_tokens is not None
            self.order = DataOrder(train.lengths, seed=seed, in_tokens=in_tokens)
        self.total, self.sizes = planned_updates(self.order, options)
        self.schedule = Schedule.of(options, self.total)
        self.optimizer = Optimizer.of(model, options, sparse=self.world.size == 1)
        self.average = MovingAverage(model, options.ema) if options.ema is not None else None
        self.guard = Guard(options.guard)
        self.course, self._window = Course(), Window()
        self.cursor = Cursor()
        self.skips: dict[Cursor, Cursor] = {}  # where a place is passed over, and where to go
        before_trouble = options.guard.margin + options.guard.patience
        self.begun: deque[Cursor] = deque(maxlen=before_trouble)
        self._kept: Tensor | None = None
        self._stopping = False
        self._saved_at = -1
        if validation is not None:
            self._check_metric()

    @property
    def epoch(self) -> float:
        """Passes over the data done."""
        return self.cursor.epoch + self.cursor.offset / len(self.order)

    def fit(self) -> Course:
        """Train to the end, from wherever this is.

        Raises:
            Stopped: `should_stop` said so; the model was saved.
            RunError: the numbers went wrong and the guard gave up. The update is not applied.
        """
        train_mode(self.model)
        start = time.perf_counter()
        epoch = self.order.updates(1, self.sizes.at, self.sizes.updates)
        if self.world.size == 1 and self.total > epoch:
            self._kept = read_once(self)
        self.course.seconds += time.perf_counter() - start
        self.reporter.begin(self.total, self.course.steps)
        if self.options.guard.action == "rollback" and self.course.steps == 0:
            self._save(best=False)  # something to go back to
        with reusing_memory(self.device.type == "cpu") as tidy:
            while self.course.steps < self.total and not self.course.early:
                self._run(tidy)
        return self.course

    def state(self) -> State:
        """Everything besides the model that the rest of the run depends on."""
        found = all_generators(self.world)
        found.tensors |= self.optimizer.state()
        if self.average is not None:  # then the model that is saved is the average
            # A copy of shares: evaluating the average puts its values in their place.
            shared = is_sharded(self.model)
            found.tensors |= {
                f"raw.{name}": p.detach().clone() if shared else p.detach()
                for name, p in self.model.named_parameters()
                if p.requires_grad
            }
        if self.carry is not None:
            carried = self.carry.state(self.world)
            found.tensors |= {f"carried.{name}": value for name, value in carried.items()}
        found.values |= {
            "course": self.course.to_dict(),
            "window": vars(self._window),
            "guard": self.guard.to_dict(),
            "cursor": self.cursor,
            "skips": sorted(self.skips.items()),
            "begun": list(self.begun),
            "averaged": 0 if self.average is None else self.average.updates,
        }
        return found

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint as if nothing had happened since."""
        load_weights(self.model, saved.weights)
        state = saved.state
        if self.average is not None:
            weights = self.model.state_dict()
            averages = {name: weights[name] for name in self.average.tensors}
            self.average.load(averages, state.values["averaged"])
            raw = {f"raw.{name}": weights[name] for name in self.average.tensors}
            state.fill(raw)
        self.optimizer.restore(state)
        restore_all_generators(state, self.world, self.seed)
        if self.carry is not None:
            self.carry.restore(state.under("carried."), self.device)
        values = state.values
        self.course = Course.from_dict(values["course"])
        self._window = Window(**values["window"])
        self.guard.restore(values["guard"])
        self.cursor = Cursor(*values["cursor"])
        self.skips = {Cursor(*a): Cursor(*b) for a, b in values["skips"]}
        self.begun.clear()
        self.begun.extend(Cursor(*place) for place in values["begun"])

    def _run(self, tidy: Callable[[], None]) -> None:
        """Updates until the end, or until the guard had to step in; `tidy` after each."""
        with closing(self._jobs()) as jobs:
            for job in jobs:
                trouble = self._update(job)
                if trouble is not None:
                    ended = rescue(self, job, trouble) and self.options.eval_every == "epoch"
                    if ended and self.course.evaluated != self.course.steps:
                        self._evaluate_and_save(tidy)
                    return
                tidy()
                ended = self.cursor.epoch > job.at.epoch
                done = self.course.steps == self.total
                if self._eval_due(ended) or done:
                    self._evaluate_and_save(tidy)
                elif self._save_due():
                    self._save(best=False)
                if done or self.course.early:
                    return
                if self._stopping:
                    if self._saved_at != self.course.steps:
                        self._save(best=False)
                    raise Stopped(self.course.steps)

    def _jobs(self) -> Generator[Job]:
        """The batches from here on, as long as every one of them leads to an update."""

        def places() -> Iterator[tuple[Cursor, Share, Cursor]]:
            at, step = self.cursor, self.course.steps
            while step < self.total:
                which, after = self.order.take(at, self.sizes.at(step))
                after = self.past(after)
                parts = -(-self.options.accumulate * self.sizes.at(step) // self.sizes.whole)
                yield at, share_out(which, parts, self.world.rank, self.world.size), after
                at, step = after, step + 1

        def make(place: tuple[Cursor, Share, Cursor]) -> Job:
            at, share, after = place
            batches = [self.train.batch(part) for part in share.parts]
            ready = [drawn(self.task, batch, seed=self.seed, epoch=at.epoch) for batch in batches]
            return Job(at, share, after, ready)

        return prefetched(make, places(), self.options.workers)

    def _update(self, job: Job) -> Trouble | None:
        """One optimizer step on one batch, unless something is wrong with it."""
        start = time.perf_counter()
        self.begun.append(job.at)
        job.generator = torch.get_rng_state()
        if self.carry is not None and job.at.offset == 0:
            self.carry.forget()
        total, count, parts = self.gradients(job)
        norm = self.optimizer.gradient_norm()
        mean, norm_of_mean = total / max(count, 1), float(norm) / max(count, 1)
        trouble = self.guard.judge(mean, norm_of_mean)
        if trouble is not None:
            return trouble
        if self.carry is not None:
            self.carry.commit()
        rate = self.options.learning_rate * self.schedule.factor(self.course.steps)
        if count == 0:  # in no process is there anything to learn from: the weights stay
            self.optimizer.forget()
        else:
            self.optimizer.step(rate, count, norm)
            if self.average is not None:
                self.average.update()
            self.guard.accept(mean)
        self.cursor = job.after
        self.course.steps += 1
        tokens = int(self.train.lengths[job.share.whole].sum())
        self.course.tokens += tokens
        self.course.examples += len(job.share.whole)
        seconds = time.perf_counter() - start
        self.course.seconds += seconds
        window = self._window
        window.sum, window.count = window.sum + total, window.count + count
        window.tokens, window.seconds = window.tokens + tokens, window.seconds + seconds
        window.add_parts(parts)
        due = self.course.steps % self.options.log_every == 0 or self.course.steps == self.total
        if due and window.count > 0:
            self._log(rate, norm_of_mean)
        return None

    def gradients(self, job: Job) -> tuple[float, int, dict[str, float]]:
        """Add up the gradients of the sum of the loss, over all parts and processes.

        Returns:
            that sum, its count, and the sums of the loss's parts.
        """
        sums: list[Tensor] = []
        count = 0
        if self.carry is not None:
            self.carry.drop()
        parts: dict[str, float] = {}
        for i, batch in enumerate(job.batches):
            batch = batch.to(self.device)
            with self.world.syncing(self.model, last=i == len(job.batches) - 1):
                with precision_context(self.device, self.options.precision):
                    real = job.share.real[i]  # else a stand-in: all processes must take part
                    loss = self.task.loss(self._outputs(batch, keep=real), batch)
                (loss.sum if real else loss.sum * 0.0).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.sum.detach() * float(real))
            count += loss.count * real
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + float(value.detach()) * real
        total = float(torch.stack(sums).sum())
        figures = [total, float(count), float(self._should_stop()), *parts.values()]
        total, whole, stop, *values = self.world.sum(figures, self.device)
        self._stopping = stop > 0
        return total, int(whole), dict(zip(parts, values, strict=True))

    def past(self, place: Cursor) -> Cursor:
        """Where to go on at a place: there, unless its data are to be passed over."""
        while place in self.skips:
            place = self.skips[place]
        return place

    def _outputs(self, batch: PackedBatch, *, keep: bool) -> Any:
        if self.carry is not None:
            return self.carry.forward(self.world.wrapped(self.model), batch, keep=keep)
        if self._kept is None:
            return self.task.forward(self.world.wrapped(self.model), batch)
        assert isinstance(self.model, PooledHead)  # noqa: S101 - for the type checker
        return self.model.answer(self._kept[batch.index.to(self.device)])

    def _log(self, rate: float, norm: float) -> None:
        window, self._window = self._window, Window()
        entry = Step(
            step=self.course.steps,
            epoch=self.epoch,
            loss=window.sum / window.count,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=window.tokens / max(window.seconds, 1e-9),
            parts={name: value / window.count for name, value in window.parts.items()},
        )
        self.reporter.step(entry, self.total)

    def _eval_due(self, epoch_ended: bool) -> bool:
        every = self.options.eval_every
        return epoch_ended if every == "epoch" else self.course.steps % every == 0

    def _save_due(self) -> bool:
        every = self.options.save_every
        return every is not None and self.course.steps % every == 0

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def _save(self, *, best: bool) -> None:
        state = self.state()
        with self._averaged():
            self.keeper.save(self.course.steps, state, best=best)
        self._saved_at = self.course.steps

    def _evaluate_and_save(self, tidy: Callable[[], None]) -> None:
        """Evaluate on the validation data and keep the model."""
        step, is_best = self.course.steps, False
        if self.validation is not None:
            with self._averaged():
                found = evaluate_features(
                    self.task,
                    self.model,
                    self.validation,
                    batch_tokens=self.options.eval_batch_tokens,
                    device=self.device,
                    precision=self.options.precision,
                    progress=lambda done: tidy(),
                    world=self.world,
                    calibrate=True,
                )
            best, by = self.course.best, self._best_by
            is_best = best is None or better(by, found.metrics[by], best.metrics[by])
            if is_best:
                self.course.best, self.course.best_step = found, step
            self.course.evaluations.append((step, self.epoch, found.metrics))
            note = "  best so far" if is_best else ""
            self.reporter.evaluation(step, self.epoch, found.metrics, found.seconds, note)
            patience = self.options.patience
            if patience is not None and self.course.evaluations_since_best >= patience:
                self.course.early = True
                self.reporter.say(f"no better in {patience} evaluations: stopping early")
        self._save(best=is_best)

    def _check_metric(self) -> None:
        known = ["loss", *AllMetrics.of(self.task).result()]
        if self._best_by not in known:
            raise RunError(
                f"train.best: no metric is called '{self._best_by}'",
                did_you_mean(self._best_by, known),
            )
