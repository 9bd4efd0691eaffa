"""The training loop: one for every task and every model.

for each update:
    gradients of the *sum* of the loss over the batch, one micro-batch after the other
    are the numbers sane? (guard.py); if not, recover
    one division, by the count of the whole batch (optimizer.py)
    AdamW with the scheduled learning rate
once in a while: evaluate, and keep the last and the best model

Everything a run depends on between two updates is in `Trainer.state`; what comes next is a function
of that alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from pretune.data.arrays import Array
from pretune.data.batch import Features, PackedBatch
from pretune.data.batch_order import Cursor
from pretune.data.prefetch import prefetched
from pretune.errors import OwnCodeError, PretuneError, RunError, did_you_mean
from pretune.inference.memory import reusing_memory
from pretune.inference.runtime import evaluation_mode, precision_context
from pretune.inference.strategies import Strategy, strategy_for
from pretune.recipe.schema import TrainSection
from pretune.tasks.added_metrics import AllMetrics
from pretune.tasks.base import AnyTask, HasReference, MakesExperience, WritesAnswers, drawn
from pretune.training.callbacks import Callbacks, Event, Moment
from pretune.training.distributed import World, is_sharded, load_weights
from pretune.training.ema import MovingAverage
from pretune.training.freeze import ReadOnce, reads_once, train_mode
from pretune.training.guard import Guard, Trouble, first_bad_module
from pretune.training.logging import Reporter, Step
from pretune.training.on_policy import OnPolicy
from pretune.training.optimizer import Optimizer
from pretune.training.sample_sheet import sheet_of
from pretune.training.schedule import Schedule, planned_updates
from pretune.training.state import (
    CheckpointStore,
    LogSums,
    SavedCheckpoint,
    TrainingHistory,
    TrainingState,
    all_generators,
    restore_all_generators,
)
from pretune.training.stop import Stopped
from pretune.training.validation import Evaluation, beats, better_by, evaluate_features

#: The examples of a bad batch that are looked at one by one.
MAX_EXAMINED = 1024
#: The records that an error names.
MAX_NAMED = 8


@dataclass
class GlobalBatch:
    """The data of one update.

    All processes must take part in every pass, so one that has run out of data gets a stand-in.
    """

    start: Cursor  # where it begins in the order of the data
    end: Cursor  # where the next one begins
    features: Array  # `[B]` numbers, over all processes
    micro_batches: list[PackedBatch]  # this process's share; every process has the same number
    real: list[bool]  # for each micro-batch, False if it is a stand-in
    # Of torch's generator before the update, to repeat its dropout.
    rng_state: Tensor = field(default_factory=lambda: torch.empty(0))


def share_out(
    features: Array, parts: int, rank: int = 0, size: int = 1
) -> tuple[list[Array], list[bool]]:
    """Deal features `[B]` out like cards, in at most `parts` micro-batches for each process.

    A sum over processes and parts is the sum over the batch. Returns the features of each
    micro-batch, and which of them are real rather than stand-ins.
    """
    largest_share = -(-len(features) // size)  # the first process's
    pieces = np.array_split(features[rank::size], min(parts, largest_share))
    real = [len(piece) > 0 for piece in pieces]
    stand_in = features[:1]
    return [p if ok else stand_in for p, ok in zip(pieces, real, strict=True)], real


def check_nothing_is_written(task: AnyTask) -> None:
    """Check that a task's evaluations work with a model of which each process has only a shard.

    Raises:
        RunError: they write texts.
    """
    samples = getattr(task.options, "samples", None)
    if isinstance(task, WritesAnswers) and samples != 0:
        others = "" if samples is None else " or task.samples=0"
        raise RunError(
            "train.parallel=fsdp: evaluations write texts token by token, which takes the whole of "
            "the model in each process",
            f"Set train.parallel=ddp{others}.",
        )


def check_batches_stay_whole(task: AnyTask, options: TrainSection, world: World) -> None:
    """Check that no batch is split whose loss is not the sum of the losses of its parts.

    Raises:
        RunError: it would be, into micro-batches or among processes.
    """
    if task.loss_adds_up or (options.accumulate == 1 and world.size == 1):
        return
    split = "train.accumulate" if options.accumulate > 1 else f"{world.size} processes"
    raise RunError(
        f"{split}: the loss of {task.name} compares each reply with the mean of its whole batch, "
        "which must not be split",
        "Train in one process with train.accumulate=1; a smaller train.batch_size or train.lora "
        "saves memory.",
    )


class Trainer:
    """Trains a model on features, by the `train:` section of a recipe.

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
        seed: int = 0,  # of the data order
        device: torch.device | None = None,  # where the model is
        reporter: Reporter | None = None,
        store: CheckpointStore | None = None,
        should_stop: Callable[[], bool] = lambda: False,  # asked in each update
        # Names a record for people, by its number.
        name_record: Callable[[int], str] = "record {}".format,
        world: World | None = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        if len(train) == 0:
            why = f": {train.skipped[0].why}" if train.skipped else ""
            raise RunError(f"there is nothing to train on{why}", "Give data.train more records.")
        if validation is not None and len(validation) == 0:
            raise RunError("there is nothing to evaluate on", "Give other data.validation.")
        check_batches_stay_whole(task, options, world or World())
        if validation is not None and is_sharded(model):
            check_nothing_is_written(task)
        self.task, self.model, self.options, self.seed = task, model, options, seed
        self.train, self.validation = train, validation
        self.device = device or torch.device("cpu")
        self.reporter = reporter or Reporter(quiet=True)
        self.world = world or World()
        self.callbacks = callbacks or Callbacks()
        self.name_record = name_record
        self.store = store or CheckpointStore()
        self._should_stop = should_stop
        self._best_by = options.best or task.best_by
        known = ["loss", *AllMetrics.of(task).result()] if validation is not None else []
        if known and self._best_by not in known:
            raise RunError(
                f"train.best: no metric is called '{self._best_by}'",
                did_you_mean(self._best_by, known),
            )

        # What is computed: the order of the data, the number of updates, the rate of each.
        self.strategy = self._strategy()
        self.order = self.strategy.order(
            train.lengths,
            seed,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            grows=options.batch_ramp is not None,
        )
        self.total, self.sizes = planned_updates(self.order, options)
        self.schedule = Schedule.of(options, self.total)
        self.optimizer = Optimizer(model, options, sparse=self.world.size == 1)
        self.average = MovingAverage(model, options.ema) if options.ema is not None else None
        self.guard = Guard(options.guard)

        # Where the run is; all of it goes into `state`.
        self.history, self._log_sums = TrainingHistory(), LogSums()
        self.cursor = Cursor()
        self.skips: dict[Cursor, Cursor] = {}  # data to pass over: from where, to where
        before_trouble = options.guard.margin + options.guard.patience
        self.begun: deque[Cursor] = deque(maxlen=before_trouble)  # where the last updates began
        self._stopping = False
        self._saved_at = -1
        self._figures: dict[str, float] = {}  # of the last update, for callbacks

    def _strategy(self) -> Strategy:
        """How batches run: those of most tasks come from the data, others are written first."""
        if not isinstance(self.task, MakesExperience):
            return strategy_for(self.task, self.model, self.train)
        return OnPolicy(
            self.task,
            self.model,
            self.train,
            seed=self.seed,
            device=self.device,
            precision=self.options.precision,
            world=self.world,
        )

    @property
    def epoch(self) -> float:
        """Passes over the data done."""
        return self.cursor.epoch + self.cursor.offset / len(self.order)

    # The loop

    def fit(self) -> TrainingHistory:
        """Train to the end, from wherever the run is.

        Raises:
            Stopped: `should_stop` asked for it; the model was saved.
            OwnCodeError: a callback, a metric or a loss failed; the model was saved.
            PretuneError: the strategy cannot make its examples; the model was saved.
            RunError: the numbers went wrong and the guard gave up. The update is not applied.
        """
        train_mode(self.model)
        self._read_frozen_backbone()
        self.reporter.begin(self.total, self.history.steps)
        with self._kept(), reusing_memory(self.device.type == "cpu") as tidy:
            if self.history.steps == 0:
                self._before_first(tidy)
            elif self._owes_evaluation():
                self._evaluate_and_save(tidy)
            while self.history.steps < self.total and not self.history.ended:
                began, held = time.perf_counter(), self.strategy.holds(self.cursor)
                self._prepare()
                if not held:
                    self.history.seconds += time.perf_counter() - began
                # Recovering from trouble moves the cursor, and the batches start there afresh.
                with closing(self._batches()) as batches:
                    self._train_on(batches, tidy)
        self._tell("end", {} if self.history.best is None else self.history.best.metrics)
        return self.history

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Context that saves the run where a person's own code, as of a metric, fails in it."""
        try:
            yield
        except OwnCodeError:
            self.optimizer.zero_grad()
            # Other processes are somewhere else, and saving takes all of them.
            if self.world.size == 1 and self.history.steps and self._saved_at != self.history.steps:
                self._save(best=False, tell=False)
            raise

    def _owes_evaluation(self) -> bool:
        """Whether a run that is resumed ended where an evaluation was due, as a callback failed."""
        if self.validation is None or self.history.evaluated == self.history.steps:
            return False
        step, every = self.history.steps, self.options.eval_every
        if step == self.total or self.history.ended:
            return True
        return self.cursor.offset == 0 if every == "epoch" else step % every == 0

    def _before_first(self, tidy: Callable[[], None]) -> None:
        """Save, and perhaps evaluate, what training starts from."""
        # What it starts from is what a reference ties it to, and may stay the best.
        compared = isinstance(self.task, HasReference) or self.options.eval_at_start
        all_there_is = self.total == 0
        if (compared or all_there_is) and self.validation is not None:
            if self.history.evaluated is None:
                self._evaluate_and_save(tidy)
        elif all_there_is or self.options.guard.action == "rollback":
            self._save(best=False)  # something to go back to

    def _prepare(self) -> None:
        """Let the strategy make its examples; what was trained before is kept if it cannot.

        A reward may fail or hang after hours. Nothing of the run has changed since the last update,
        and a run that is resumed there makes the same examples again.
        """
        try:
            self.strategy.prepare(self.cursor)
        except (PretuneError, KeyboardInterrupt) as error:
            # Other processes are somewhere else, and saving takes all of them.
            if self.world.size > 1 or self.history.steps == 0:
                raise
            if self._saved_at != self.history.steps:
                self._save(best=False)
            if isinstance(error, KeyboardInterrupt) and self._should_stop():
                raise Stopped(self.history.steps) from None
            raise

    def _train_on(self, batches: Iterator[GlobalBatch], tidy: Callable[[], None]) -> None:
        """Make updates until the batches end, or until the run goes on at another place."""
        for batch in batches:
            if batch.start != self.cursor:  # the strategy passed over the rest of its examples
                return
            trouble = self._update(batch)
            if trouble is not None:
                passed_end = self._recover(batch, trouble)
                # The skipped data may have been the end of an epoch, where evaluation is due.
                due = passed_end and self.options.eval_every == "epoch"
                if due and self.history.evaluated != self.history.steps:
                    self._evaluate_and_save(tidy)
                return
            tidy()
            self._tell("step", self._figures)
            # Once in a while: evaluate and save, or only save.
            step, every = self.history.steps, self.options.eval_every
            done = step == self.total or self.history.ended
            epoch_ended = self.cursor.epoch > batch.start.epoch
            if done or (epoch_ended if every == "epoch" else step % every == 0):
                self._evaluate_and_save(tidy)
            elif self.options.save_every is not None and step % self.options.save_every == 0:
                self._save(best=False)
            if done or self.history.ended:
                return
            # Somebody asked to stop: leave with a checkpoint of this very update.
            if self._stopping:
                if self._saved_at != self.history.steps:
                    self._save(best=False)
                raise Stopped(self.history.steps)

    def _batches(self) -> Generator[GlobalBatch]:
        """The batches from the cursor on, made ahead of time by `train.workers` threads.

        They assume that each of them leads to an update, and end where the strategy has to make
        more examples.
        """
        examples = self.strategy.examples

        def places() -> Iterator[tuple[Cursor, Array, int, Cursor]]:
            start, step = self.cursor, self.history.steps
            while step < self.total and self.strategy.holds(start):
                size = self.sizes.at(step)
                features, end = self.order.take(start, size)
                end = self._past_skips(end)
                # A batch that is still small (`batch_ramp`) needs fewer parts.
                parts = -(-self.options.accumulate * size // self.sizes.whole)
                yield start, features, parts, end
                start, step = end, step + 1

        def make(place: tuple[Cursor, Array, int, Cursor]) -> GlobalBatch:
            start, features, parts, end = place
            shares, real = share_out(features, parts, self.world.rank, self.world.size)
            micro_batches = [
                drawn(self.task, examples.batch(share), seed=self.seed, epoch=start.epoch)
                for share in shares
            ]
            return GlobalBatch(start, end, features, micro_batches, real)

        return prefetched(make, places(), self.options.workers)

    def _past_skips(self, place: Cursor) -> Cursor:
        # Where the data ends that the guard passes over, if it is at this place.
        while place in self.skips:
            place = self.skips[place]
        return place

    def _update(self, batch: GlobalBatch) -> Trouble | None:
        """Make one update, unless something is wrong with its numbers."""
        began = time.perf_counter()
        self.begun.append(batch.start)
        batch.rng_state = torch.get_rng_state()
        if batch.start.offset == 0:
            self.strategy.begin_epoch()

        # The sum of the loss and of its gradients, over all micro-batches and processes.
        try:
            total, count, parts = self.gradients(batch)
        except OwnCodeError:
            torch.set_rng_state(batch.rng_state)  # as if the update had not begun
            self.begun.pop()
            raise
        norm = self.optimizer.gradient_norm()
        mean, norm_of_mean = total / max(count, 1), float(norm) / max(count, 1)
        trouble = self.guard.judge(mean, norm_of_mean)
        if trouble is not None:
            return trouble
        self.strategy.commit()

        # The one division, clipping and AdamW.
        rate = self.options.learning_rate * self.schedule.factor(self.history.steps)
        if count == 0:  # no process had anything to learn from: the weights stay
            self.optimizer.zero_grad()
        else:
            self.optimizer.step(rate, count, norm)
            if self.average is not None:
                self.average.update()
            self.guard.accept(mean)

        # Count it, and log it once in a while.
        means = {name: value / max(count, 1) for name, value in parts.items()}
        self.cursor = self._past_skips(self.strategy.next(batch.end, means))
        tokens = int(self.strategy.examples.lengths[batch.features].sum())
        seconds = time.perf_counter() - began
        self.history.add_update(tokens, len(batch.features), seconds)
        if count and isinstance(self.task, MakesExperience):
            self._compare_with_limits(means)
        self._log_sums.add(total, count, parts, tokens, seconds)
        self._figures = {"loss": mean, "learning_rate": rate, "gradient_norm": norm_of_mean}
        last = self.history.steps == self.total or self.history.ended
        due = last or self.history.steps % self.options.log_every == 0
        if due and self._log_sums.count > 0:
            self._log(rate, norm_of_mean)
        return None

    def gradients(self, batch: GlobalBatch) -> tuple[float, int, dict[str, float]]:
        """Add up the gradients of the sum of the loss; returns that sum, its count, its parts."""
        sums: list[Tensor] = []
        count = 0
        parts: dict[str, float] = {}
        self.strategy.discard()
        module = self.world.wrapped(self.model)
        last = len(batch.micro_batches) - 1
        for i, (micro, real) in enumerate(zip(batch.micro_batches, batch.real, strict=True)):
            micro = micro.to(self.device)
            # Processes exchange gradients only after the last one.
            with self.world.syncing(self.model, last=i == last):
                with precision_context(self.device, self.options.precision):
                    outputs = self.strategy.forward(module, micro, keep=real)
                    loss = self.task.loss(outputs, micro)
                (loss.sum if real else loss.sum * 0.0).backward()  # type: ignore[no-untyped-call]
            # Still on the device: reading it now would wait for the computation.
            sums.append(loss.sum.detach() * float(real))
            count += loss.count * real
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + float(value.detach()) * real
        # One exchange for all figures; a stop that one process was asked for is a stop for all.
        total = float(torch.stack(sums).sum())
        figures = [total, float(count), float(self._should_stop()), *parts.values()]
        total, whole, stop, *values = self.world.sum(figures, self.device)
        self._stopping = stop > 0
        return total, int(whole), dict(zip(parts, values, strict=True))

    def _read_frozen_backbone(self) -> None:
        """Where a frozen backbone would be read in several epochs, read it once, now."""
        repeats = self.total > self.order.updates(1, self.sizes.at, self.sizes.updates)
        if self.world.size > 1 or not repeats:
            return
        if not reads_once(self.task, self.model, self.train):
            return
        began = time.perf_counter()
        with self.reporter.working("reading once", len(self.train)) as progress:
            self.strategy = ReadOnce(
                self.task,
                self.model,
                self.train,
                device=self.device,
                precision=self.options.precision,
                progress=progress,
            )
        self.history.seconds += time.perf_counter() - began

    def _log(self, rate: float, norm: float) -> None:
        sums, self._log_sums = self._log_sums, LogSums()
        entry = Step(
            step=self.history.steps,
            epoch=self.epoch,
            loss=sums.sum / sums.count,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_second=sums.tokens / max(sums.seconds, 1e-9),
            parts={name: value / sums.count for name, value in sums.parts.items()},
        )
        self.reporter.step(entry, self.total)

    # Once in a while: evaluate and save

    def _evaluate_and_save(self, tidy: Callable[[], None]) -> None:
        """Evaluate on the validation data, if there is any, and save the model."""
        is_best = self.validation is not None and self._evaluate(self.validation, tidy)
        self._save(best=is_best)

    def _evaluate(self, validation: Features, tidy: Callable[[], None]) -> bool:
        """Evaluate and report; returns whether the model is the best so far."""
        with self._averaged():
            result = evaluate_features(
                self.task,
                self.model,
                validation,
                batch_tokens=self.options.eval_batch_tokens,
                device=self.device,
                precision=self.options.precision,
                progress=lambda done: tidy(),
                world=self.world,
                calibrate=True,
            )
        # Is it the best so far?
        history, by = self.history, self._best_by
        best = history.best
        # A loss over replies that the model wrote itself does not tell which one is surer.
        ranked = better_by if isinstance(self.task, MakesExperience) else beats
        is_best = best is None or ranked(by, result.metrics, best.metrics)
        if is_best:
            history.best, history.best_step = result, history.steps
        history.evaluations.append((history.steps, self.epoch, result.metrics))
        note = "  best so far" if is_best else ""
        self.reporter.evaluation(
            *(history.steps, self.epoch, result.metrics, result.seconds, note),
            details=result.details,
        )
        self._show_samples(result)
        self._tell("evaluation", result.metrics, best=is_best)
        # Does something look wrong? It is said once.
        if isinstance(self.task, MakesExperience) and not history.warnings:
            warning = self.task.warning(history.evaluations[0][2], result.metrics)
            if warning is not None:
                history.warnings = [warning]
                self.reporter.say(f"warning: {warning}")
        # Stop on a figure, or early.
        self._compare_with_limits(result.metrics)
        patience, waited = self.options.patience, history.evaluations_since_best
        if patience is not None and waited >= patience and not history.ended:
            history.early = True
            self.reporter.say(f"no better in {patience} evaluations: stopping early")
        return is_best

    def _show_samples(self, result: Evaluation) -> None:
        """Put the replies before training beside those of the best model, if it has any."""
        history = self.history
        if history.steps == 0:
            history.before = result
        elif history.before is not None:
            # Where nothing was better than the start, the last replies show what came of it.
            after, step = result, history.steps
            if history.best is not None and history.best_step:
                after, step = history.best, history.best_step
            self.reporter.samples(sheet_of(history.before, after, step))

    def _compare_with_limits(self, figures: Mapping[str, float]) -> None:
        """End the run where a figure has passed its limit (`train.stop_on`)."""
        for name, limit in self.options.stop_on.items():
            passed = limit.passed(figures[name]) if name in figures else None
            if passed is not None and not self.history.ended:
                step, value = self.history.steps, figures[name]
                stopped_on = {"figure": name, "value": value, "limit": passed, "step": step}
                self.history.stopped_on = stopped_on
                end = f": stopping after update {step}"
                if step == self.total:
                    end = ", after the last update"
                self.reporter.say(f"{name} is {value:.4g}, {passed} (train.stop_on){end}")

    def _averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self.average is None else self.average.applied()

    def _save(self, *, best: bool, tell: bool = True) -> None:
        state = self.state()
        with self._averaged():
            self.store.save(self.history.steps, state, best=best)
        self._saved_at = self.history.steps
        if tell and self.callbacks.listen("checkpoint"):
            self.store.flush()  # it may be written in the background
            self._tell("checkpoint", {}, best=best)

    # Callbacks

    def _tell(self, event: Event, figures: Mapping[str, float], *, best: bool = False) -> None:
        """Tell the callbacks what happened; one that fails ends the run, whose state is saved."""
        if not self.callbacks.listen(event):
            return
        step, epoch, why = self.history.steps, self.epoch, None
        failed: OwnCodeError | None = None

        def moment(reasons: list[str]) -> Moment:
            known = (step, self.total, epoch, dict(figures), best)
            return Moment(*known, self.model, self.task, self.callbacks.folder, reasons)

        # The first process calls them; all of them go on, or end, together.
        if self.world.main:
            if event == "end":
                self.store.flush()
            try:
                with nullcontext() if event == "step" else self._averaged():
                    why = self.callbacks.tell(event, moment)
            except OwnCodeError as error:
                failed = error
        flags = [float(failed is not None), float(why is not None)]
        any_failed, any_asked = self.world.sum(flags, self.device)
        if any_failed:
            if self._saved_at != step:
                self._save(best=best, tell=False)
            raise failed or OwnCodeError("a callback failed in the first process")
        if any_asked and event != "end" and not self.history.ended:
            self.history.early = True
            asked = "" if why is None else f"{why}: "
            self.reporter.say(f"{asked}a callback asks to stop, after update {step}")

    # The state of the run, to and from a checkpoint

    def state(self) -> TrainingState:
        """Everything except the model that the rest of the run depends on."""
        state = all_generators(self.world)
        state.tensors |= self.optimizer.state()
        if self.average is not None:
            # The checkpoint's model is the average, so the weights themselves are kept here. Shards
            # are copied: evaluating the average puts other values into them.
            sharded = is_sharded(self.model)
            state.tensors |= {
                f"raw.{name}": p.detach().clone() if sharded else p.detach()
                for name, p in self.model.named_parameters()
                if p.requires_grad
            }
        carried = self.strategy.state(self.world.gather)
        state.tensors |= {f"carried.{name}": value for name, value in carried.items()}
        state.values |= {
            "course": self.history.to_dict(),
            "window": vars(self._log_sums),
            "guard": self.guard.to_dict(),
            "cursor": self.cursor,
            "skips": sorted(self.skips.items()),
            "begun": list(self.begun),
            "averaged": 0 if self.average is None else self.average.updates,
        }
        return state

    def restore(self, saved: SavedCheckpoint) -> None:
        """Continue from a checkpoint as if nothing had happened since."""
        load_weights(self.model, saved.weights)
        state = saved.state
        if self.average is not None:
            # The other way round from `state`: the average from the model, then the raw weights.
            weights = self.model.state_dict()
            averages = {name: weights[name] for name in self.average.tensors}
            self.average.load(averages, state.values["averaged"])
            state.fill({f"raw.{name}": weights[name] for name in self.average.tensors})
        self.optimizer.restore(state)
        restore_all_generators(state, self.world, self.seed)
        self.strategy.restore(state.under("carried."), self.device)
        values = state.values
        self.history = TrainingHistory.from_dict(values["course"])
        self._saved_at = self.history.steps
        self._log_sums = LogSums(**values["window"])
        self.guard.restore(values["guard"])
        self.cursor = Cursor(*values["cursor"])
        self.skips = {Cursor(*start): Cursor(*end) for start, end in values["skips"]}
        self.begun.clear()
        self.begun.extend(Cursor(*place) for place in values["begun"])

    # Recovery: the guard refused an update

    def _recover(self, batch: GlobalBatch, trouble: Trouble) -> bool:
        """Stop, skip the batch or roll back, as `train.guard` says; the update was not made.

        Returns whether the skipped data reaches the end of an epoch, which then has no last update.
        """
        options, rescues = self.options.guard, self.history.rescues
        # What happened, where it came from, and what to do about it.
        what = f"{trouble.what} in update {self.history.steps + 1} of {self.total}"
        cause = self._find_cause(batch, trouble)
        advice = f"Lower train.learning_rate (now {self.options.learning_rate:g})"
        if not self.options.clip:
            advice += ", set train.clip=1.0"
        # Give up: at once, or after too many recoveries.
        if options.action == "stop":
            raise RunError(
                f"{what}; the update was not applied\n  {cause}",
                f"{advice}, look at these records, or train on without them: train.guard=skip or "
                "train.guard=rollback.",
            )
        if len(rescues) >= options.give_up:
            earlier = "".join(f"\n  - {text}" for text in rescues)
            raise RunError(
                f"{what}, after {len(rescues)} recoveries: given up\n  {cause}\n"
                f"  earlier:{earlier}",
                f"{advice}, look at the records named here, or allow more: train.guard.give_up.",
            )
        # Or continue: from an earlier checkpoint, or behind this batch.
        if options.action == "rollback":
            start, done = self._roll_back(batch)
        else:
            start, done = batch.start, "this batch was skipped"
            self.cursor = batch.end
        self.guard.streak = 0
        # Not in place: rolling back restored an older history.
        self.history.rescues = [*rescues, f"{what}: {done}; {cause}"]
        self.reporter.say(f"guard: {self.history.rescues[-1]}")
        return self.cursor.epoch > start.epoch

    def _roll_back(self, batch: GlobalBatch) -> tuple[Cursor, str]:
        """Return to a checkpoint from before the trouble, and from now on skip its data.

        Returns the checkpoint's place in the data, and what was done in words.
        """
        # A few updates before the refused one count as trouble too (`guard.margin`).
        trouble_start, skips, failed_step = self.begun[0], self.skips, self.history.steps
        saved = self.store.newest(at_most=failed_step - len(self.begun) + 1)
        if saved is None:
            raise RunError(
                "train.guard: there is no whole checkpoint to go back to",
                "Were files of the run removed while it ran? train.guard=skip needs none.",
            )
        self.restore(saved)
        step, place = self.history.steps, self.cursor
        self.reporter.rewind(step)
        # The checkpoint may be younger than the start of the trouble.
        trouble_start = max(trouble_start, place)
        self.skips = {**skips, trouble_start: batch.end}
        self.cursor = self._past_skips(place)
        return place, (
            f"back to update {step} ({failed_step - step} undone), and past the data from epoch "
            f"{trouble_start.epoch}, example {trouble_start.offset}, to epoch {batch.end.epoch}, "
            f"example {batch.end.offset}"
        )

    def _find_cause(self, batch: GlobalBatch, trouble: Trouble) -> str:
        """Name the module, if a number is not finite, and the records behind the trouble.

        Leaves no gradients, and torch's generator where it was.
        """
        self.optimizer.zero_grad()
        rng_state = torch.get_rng_state()
        causes = []
        try:
            if not trouble.finite:
                torch.set_rng_state(batch.rng_state)  # the same dropout
                module = first_bad_module(self.model, lambda: self.gradients(batch))
                causes.append(module or "computing the batch once more does not reproduce it")
            causes.append(self._suspects(batch, finite=trouble.finite))
        finally:
            torch.set_rng_state(rng_state)
            self.optimizer.zero_grad()
        return "; ".join(causes)

    def _suspects(self, batch: GlobalBatch, *, finite: bool) -> str:
        """Name the records whose own loss is not finite, or those with the highest loss."""
        features = batch.features[:MAX_EXAMINED]
        records = np.array([self.strategy.examples.record(int(i)) for i in features])
        losses = self._each_loss(features, batch.start.epoch)
        # A spike: the highest losses are the likeliest cause.
        if finite:
            highest = np.argsort(-losses)[:3]
            named = [f"{self.name_record(int(records[i]))} ({losses[i]:.4g})" for i in highest]
            return "the highest losses in its batch: " + ", ".join(named)
        # NaN or infinity: the records that give it by themselves, else all.
        bad = ~np.isfinite(losses)
        alone = 0 < bad.sum() < len(records)
        suspects = np.unique(records[bad] if alone else records)
        named = [self.name_record(int(record)) for record in suspects[:MAX_NAMED]]
        more = f" and {len(suspects) - MAX_NAMED} more" if len(suspects) > MAX_NAMED else ""
        which = "these records give it by themselves" if alone else "its batch"
        return f"{which}: {', '.join(named)}{more}"

    @torch.no_grad()
    def _each_loss(self, features: Array, epoch: int) -> Array:
        """`[B]` float64: the mean loss of each feature by itself, without dropout."""
        losses = []
        with evaluation_mode(self.model):
            for feature in features:
                batch = self.strategy.examples.batch(np.array([feature]))
                batch = drawn(self.task, batch, seed=self.seed, epoch=epoch).to(self.device)
                with precision_context(self.device, self.options.precision):
                    loss = self.task.loss(self.task.forward(self.model, batch), batch)
                losses.append(float(loss.sum) / max(loss.count, 1))
        return np.array(losses, dtype=np.float64)
