"""From a recipe to a finished run folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, grow_vocabulary, load
from pretune.data.batch import Features
from pretune.errors import RunError
from pretune.inference.runtime import choose_device
from pretune.models.lora import add_lora
from pretune.recipe.recipe import Overrides, Recipe
from pretune.tasks.base import AnyTask, drawn
from pretune.tasks.builtin import task_class
from pretune.training.adapters import check_base, check_lora, frozen_digest
from pretune.training.checkpoint import RunCheckpoints, newest_whole, read_values
from pretune.training.data import Data, fit, read_data, read_features, tokenizer_for
from pretune.training.distributed import World, joined
from pretune.training.freeze import freeze
from pretune.training.logging import JsonLines, Reporter, TensorBoard
from pretune.training.loop import Trainer
from pretune.training.modes import determinism, prepare
from pretune.training.run_folder import EVENTS, METRICS, RunFolder
from pretune.training.run_result import RunResult, SeedsResult, environment, peak_memory_mb
from pretune.training.state import TrainingHistory, seed_everything, seed_process
from pretune.training.stop import Interrupted, Stopped, StopRequest
from pretune.training.tracking import trackers

#: What a resumed run may do otherwise: it changes what is kept, shown or how fast it goes, and not
#: what is learned.
MAY_CHANGE = (
    "train.save_every",
    "train.keep",
    "train.background_save",
    "train.eval_batch_tokens",
    "train.log_every",
    "train.workers",
    "train.device",
    "train.guard",
    "description",
    "track",
)


def train_recipe(recipe: Recipe, *, overwrite: bool = False, quiet: bool = False) -> RunResult:
    """Train as a recipe says, into its output folder.

    Args:
        recipe: what to do.
        overwrite: delete an earlier run in the output folder.
        quiet: show no progress.

    Raises:
        PretuneError: bad data, model, recipe or folder; says what to do.
        Interrupted: SIGINT or SIGTERM came; the last model is saved.
    """
    folder = RunFolder(recipe.output)
    with joined(choose_device(recipe.train.device).type) as world:
        if world.main:
            folder.check(recipe, overwrite=overwrite)
        return _Run(recipe, folder, world, quiet=quiet).go()


def resume(path: str | Path, overrides: Overrides = (), *, quiet: bool = False) -> RunResult:
    """Go on with a run that was stopped or killed, from its newest whole checkpoint.

    On the same machine with the same versions, what comes out is bit for bit what would have come
    out had it never been stopped. A run that is finished is left as it is.

    Args:
        path: the run's folder.
        overrides: of keys that do not change what is learned, such as `train.log_every`.
        quiet: show no progress.

    Raises:
        PretuneError: no run there, other data than then, or no checkpoint that is whole.
        Interrupted: SIGINT or SIGTERM came; the last model is saved.
    """
    folder = RunFolder(path)
    # It goes on where it lies, which may not be where it began.
    earlier = folder.recipe().changed({"output": str(path)})
    recipe = earlier.changed(overrides)
    _check_unchanged(earlier, recipe)
    if (finished := folder.result()) is not None:
        return finished
    with (
        joined(choose_device(recipe.train.device).type) as world,
        folder.locked() if world.main else nullcontext(),
    ):
        return _Run(recipe, folder, world, quiet=quiet, resumed=True).go()


def train_seeds(
    recipe: Recipe, count: int, *, overwrite: bool = False, quiet: bool = False
) -> SeedsResult:
    """Train `count` times, with the seeds from `recipe.seed` on, into `output/seed-S`.

    A run of this very recipe that is there already counts, and goes on if it is not finished.

    Args:
        recipe: what to do.
        count: how often.
        overwrite: delete earlier runs in these folders.
        quiet: show no progress.

    Raises:
        PretuneError: as `train_recipe`; a seed or a folder that cannot be used is an error before
            any training.
        Interrupted: SIGINT or SIGTERM came; the last model of that run is saved.
    """
    todo = []
    for seed in range(recipe.seed, recipe.seed + count):
        output = str(Path(recipe.output) / f"seed-{seed}")
        one = recipe.changed({"seed": seed, "output": output})
        folder = RunFolder(output)
        there = not overwrite and folder.holds(one)
        if not there:
            folder.check(one, overwrite=overwrite)
        todo.append((one, there))
    return SeedsResult(
        tuple(
            resume(one.output, quiet=quiet)
            if there
            else train_recipe(one, overwrite=overwrite, quiet=quiet)
            for one, there in todo
        )
    )


def starting_model(recipe: Recipe, task: AnyTask, data: Data, start: Path | None = None) -> Bundle:
    """The model that a recipe begins with, or that a checkpoint of its run holds, in host memory.

    Args:
        recipe: names it.
        task: gives it its head.
        data: that it is trained on; random weights take the tokenizer of a corpus.
        start: the checkpoint.

    Raises:
        PretuneError: nothing there, damaged, or not fit for the task.
    """
    model, lora = recipe.model, recipe.train.lora
    if lora is not None:
        check_lora(recipe)
        start = None  # a checkpoint's adapter is beside the model that the run began with
    bundle = load(
        model.source if start is None else start,
        task=task,
        tokenizer=tokenizer_for(recipe, data) if start is None else None,
        config=model.config if start is None else None,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        mmap=False,  # every weight is about to be written to
        allow_pickle=model.allow_pickle,
    )
    bundle.columns = dict(recipe.data.columns)
    known = bundle.tokenizer.vocab_size
    if start is None:
        grow_vocabulary(bundle, model.new_tokens, model.vocab_multiple)
    if lora is None:
        freeze(bundle.model, recipe.train.freeze)
    else:
        new = range(known, bundle.tokenizer.vocab_size)
        add_lora(bundle.model, lora.rank, lora.alpha, lora.targets, new)
    return bundle


class _Run:
    """One run, from its data to its result."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        world: World,
        *,
        quiet: bool,
        resumed: bool = False,
    ) -> None:
        self.recipe, self.folder, self.world, self.resumed = recipe, folder, world, resumed
        self.device = choose_device(recipe.train.device, world.local_rank)
        self.reporter = Reporter(quiet=quiet or not world.main)
        self.task = task_class(recipe.task.name)(recipe.task)

    def go(self) -> RunResult:
        """Read, load, train, and write the result."""
        with self.folder.filling(), self.reporter, ExitStack() as stack:
            records, held_out = read_data(self.recipe)
            fit(self.task, records)
            seed_everything(self.recipe.seed)
            start = self._newest()
            bundle = starting_model(self.recipe, self.task, records, start)
            # All data is checked before the folder is touched.
            train = read_features("train", self.task, records, bundle, self.reporter)
            validation = None
            if held_out is not None:
                validation = read_features(
                    "validation", self.task, held_out, bundle, self.reporter, evaluation=True
                )
            kept = {
                "data": train.fingerprint(),
                "validation": None if validation is None else validation.fingerprint(),
                "base": frozen_digest(bundle.model),
            }
            if start is not None:
                then = read_values(start)
                _check_data(then, kept, start)
                check_base(then.get("base"), kept["base"], start, self.recipe.model.source)
            self._open_folder(bundle, stack)
            stop = stack.enter_context(StopRequest(self.reporter.say))
            stack.enter_context(determinism(self.recipe.train.deterministic))
            store = self._store(bundle, kept)
            trainer = self._trainer(bundle, train, validation, store, stop, records)
            if start is not None:
                trainer.restore(store.read(start))
            if self.resumed:
                self.reporter.rewind(trainer.history.steps)
                self.reporter.say(
                    f"resumed from {start or 'the beginning'}: update {trainer.history.steps}"
                )
            self.reporter.say(_plan(trainer, self.world))
            try:
                history = trainer.fit()
            except Stopped as stopped:
                store.flush()
                raise Interrupted(self.folder.path, stopped.step, stop.signal) from None
            except RunError:
                store.finish()
                raise
            store.flush()
            result = _result(self.recipe, history, self.device)
            if self.world.main:
                self.folder.finish(result)
        return result

    def _newest(self) -> Path | None:
        if not self.resumed:
            return None
        return newest_whole(self.folder.path, say=self.reporter.say)

    def _open_folder(self, bundle: Bundle, stack: ExitStack) -> None:
        if self.world.main:
            self.reporter.add(*trackers(self.recipe, self.reporter.say))
            if not self.resumed:
                stack.enter_context(self.folder.locked())
                self.folder.create(self.recipe)
                self.reporter.say(str(bundle.report))
            path = self.folder.path
            try:
                self.reporter.add(JsonLines(path / METRICS), TensorBoard(path / EVENTS))
            except (IsADirectoryError, FileExistsError, NotADirectoryError) as error:
                raise RunError(
                    f"{error.filename or path}: cannot be written ({error.strerror})",
                    "Something else lies there; remove it and go on with pretune train --resume "
                    f"{path}.",
                ) from None
        self.world.wait()

    def _store(self, bundle: Bundle, extra: dict[str, Any]) -> RunCheckpoints:
        options = self.recipe.train
        # The newest may be from within the trouble that is to be undone.
        least = 2 if options.guard.action == "rollback" else 1
        return RunCheckpoints(
            self.folder.path,
            bundle,
            keep=max(options.keep, least),
            background=options.background_save,
            world=self.world,
            extra=extra,
            say=self.reporter.say,
        )

    def _trainer(
        self,
        bundle: Bundle,
        train: Features,
        validation: Features | None,
        store: RunCheckpoints,
        stop: StopRequest,
        records: Data,
    ) -> Trainer:
        bundle.model.to(self.device)
        prepare(bundle.model, self.recipe.train, self.device)
        if self.world.size > 1:
            self.world.spread(
                bundle.model,
                self.recipe.train.parallel,
                lambda: first_loss(self.task, bundle.model, train, self.device),
            )
            seed_process(self.recipe.seed, self.world)
        return Trainer(
            self.task,
            bundle.model,
            train,
            validation,
            options=self.recipe.train,
            seed=self.recipe.seed,
            device=self.device,
            reporter=self.reporter,
            store=store,
            should_stop=stop,
            name_record=records.where,
            world=self.world,
        )


def first_loss(task: AnyTask, model: nn.Module, features: Features, device: torch.device) -> Tensor:
    """The sum of the loss of the first feature, with its graph."""
    batch = drawn(task, features.batch(np.array([0])), seed=0, epoch=0).to(device)
    return task.loss(task.forward(model, batch), batch).sum


def _check_unchanged(earlier: Recipe, recipe: Recipe) -> None:
    """Whether a resumed run is still the run that it was.

    Raises:
        RunError: a key differs that changes what is learned.
    """
    differing = [
        line
        for line in RunFolder.differences(earlier.to_dict(), recipe.to_dict())
        if not line.startswith(tuple(f"{key}{end}" for key in MAY_CHANGE for end in ":."))
    ]
    if differing:
        raise RunError(
            "a resumed run goes on as it began, but they differ in\n  " + "\n  ".join(differing),
            "Start a new run from its weights: pretune train RECIPE model.from=RUN/last "
            "output=FOLDER. Only these may change: " + ", ".join(MAY_CHANGE) + ".",
        )


def _check_data(then: Mapping[str, Any], now: Mapping[str, Any], checkpoint: Path) -> None:
    """Whether the data is what it was.

    Raises:
        RunError: other features to train on; or to evaluate on, which the best is picked by.
    """
    if then.get("data") != now["data"]:
        wrong = "was trained on other data than data.train gives now"
    elif "validation" in then and then["validation"] != now["validation"]:
        wrong = "was evaluated on other data than data.validation gives now"
    else:  # a checkpoint of an earlier version does not say what it was evaluated on
        return
    raise RunError(
        f"{checkpoint}: {wrong}",
        "Put the data back as it was; or start a new run from these weights: "
        f"pretune train RECIPE model.from={checkpoint} output=FOLDER",
    )


def _plan(trainer: Trainer, world: World) -> str:
    everything = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = "" if trained == everything else f" of {everything:,} ({trained / everything:.1%})"
    where = str(trainer.device) if world.size == 1 else f"{world.size} processes"
    return (
        f"training {trained:,}{share} parameters on {where} for {trainer.total:,} updates "
        f"({trainer.schedule.warmup:,} of them warming up)"
    )


def _result(recipe: Recipe, history: TrainingHistory, device: torch.device) -> RunResult:
    best = history.best
    return RunResult(
        folder=recipe.output,
        seed=recipe.seed,
        metrics={} if best is None else best.metrics,
        details={} if best is None else best.details,
        best_step=history.best_step,
        steps=history.steps,
        examples=history.examples,
        tokens=history.tokens,
        seconds=history.seconds,
        peak_memory_mb=peak_memory_mb(device),
        environment=environment(device),
        rescues=history.rescues,
        stopped_early=history.early,
    )
