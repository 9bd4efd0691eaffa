"""From a recipe to a finished run folder."""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretune.bundle.bundle import Bundle, grow_vocabulary, load
from pretune.checkpoints.manifest import files_digest
from pretune.checkpoints.source import find_source
from pretune.data.arrays import Array
from pretune.data.batch import Features, FeatureSet, PackedBatch
from pretune.data.records import Records
from pretune.errors import OwnCodeError, PretuneError, RewardError, RunError
from pretune.inference.reference import (
    frozen,
    load_reference,
    reference_scores,
    with_scores,
    with_targets,
)
from pretune.inference.rewards import named_reward, reward_function, reward_models
from pretune.models.kernels import Choice, kept
from pretune.models.lora import add_lora, without_adapters
from pretune.models.packed import is_int8
from pretune.recipe.recipe import Overrides, Recipe
from pretune.storage.object_store import is_url
from pretune.tasks.alignment.aligned import Aligned
from pretune.tasks.base import (
    AnyTask,
    ComparesWithReference,
    HasReference,
    MakesExperience,
    drawn,
)
from pretune.tasks.distillation.taught import Taught
from pretune.tasks.features import FeatureCache, own_columns
from pretune.training.adapters import check_base, check_lora, frozen_digest
from pretune.training.callbacks import Callback, Callbacks, given_callbacks, named_callbacks
from pretune.training.checkpoint import (
    TENSORS,
    VALUES,
    RunCheckpoints,
    newest_whole,
    read_values,
)
from pretune.training.data import Data, fit, read_data, read_features, tokenizer_for
from pretune.training.distributed import World, environment_world, joined, own_device
from pretune.training.first_look import data_facts, doubts
from pretune.training.freeze import freeze
from pretune.training.limits import check_limits
from pretune.training.logging import JsonLines, Reporter, SampleFile, TensorBoard
from pretune.training.loop import Trainer, check_batches_stay_whole
from pretune.training.mirror import Mirror, check_free, clear_copy, copied_recipe, fetch_run
from pretune.training.modes import determinism, set_modes
from pretune.training.passing import check_data_is_there, passing_data, resume_command
from pretune.training.reference_scores import (
    REFERENCE_FILE,
    check_reference,
    keep_scores,
    read_scores,
    reads_replies,
    scores_key,
)
from pretune.training.run_folder import EVENTS, METRICS, RunFolder
from pretune.training.run_kernels import chosen_kernels, keep_kernels
from pretune.training.run_result import RunResult, environment, peak_memory_mb
from pretune.training.sample_sheet import SAMPLES
from pretune.training.state import TrainingHistory, seed_everything, seed_process
from pretune.training.stop import Interrupted, Stopped, StopRequest
from pretune.training.teaching import Lessons, lessons_key, student_task
from pretune.training.tracking import Mlflow
from pretune.training.warm_embeddings import warm_embeddings

#: What a resumed run may change: what is kept, what is shown and how fast it goes, but not what is
#: learned.
MAY_CHANGE = (
    "train.save_every",
    "train.keep",
    "train.background_save",
    "train.mirror",
    "train.eval_batch_tokens",
    "train.log_every",
    "train.workers",
    "train.device",
    "train.guard",
    "train.stop_on",
    "train.callbacks",
    "description",
    "track",
)


def train_recipe(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Train as a recipe says, into its output folder.

    Args:
        recipe: the recipe.
        overwrite: delete an earlier run in the output folder.
        quiet: show no progress.
        callbacks: called between updates, after those that the recipe names.

    Raises:
        PretuneError: bad data, model, recipe or folder; says what to do.
        Interrupted: by SIGINT or SIGTERM; the last model is saved.
    """
    folder, world = RunFolder(recipe.output), environment_world()
    device = own_device(recipe.train.device, world)
    with joined(world, device):
        if world.main:
            folder.check(recipe, overwrite=overwrite)
            if recipe.train.mirror is not None and not overwrite:
                check_free(recipe.train.mirror)
        return _Run(recipe, folder, world, device, quiet=quiet, callbacks=callbacks).go()


def train_or_resume(
    recipe: Recipe, *, quiet: bool = False, callbacks: Sequence[Callback] = ()
) -> RunResult:
    """Train as a recipe says, from wherever the run in its output folder is.

    A run that is not there begins, one that was stopped or killed goes on, and the result of one
    that is finished is returned: so the same command may be given again and again.

    Raises:
        PretuneError: as `train_recipe` and `resume`; the folder may hold no run of another recipe.
        Interrupted: by SIGINT or SIGTERM; the last model is saved.
    """
    folder, world = RunFolder(recipe.output), environment_world()
    device = own_device(recipe.train.device, world)
    with joined(world, device), ExitStack() as stack:
        # The main process looks: by the time that others look, it may have begun the run.
        if recipe.train.mirror is not None:
            world.decided(partial(_fetch_copy, folder, recipe))
        if not world.decided(folder.exists):
            if world.main:
                folder.check(recipe)
            return _Run(recipe, folder, world, device, quiet=quiet, callbacks=callbacks).go()
        finished = world.decided(partial(_finished, folder, recipe))
        if finished is not None:
            return finished
        if world.main:
            stack.enter_context(folder.locked())
        run = _Run(recipe, folder, world, device, quiet=quiet, resumed=True, callbacks=callbacks)
        return run.go()


def _finished(folder: RunFolder, recipe: Recipe) -> RunResult | None:
    """The result of a run that is to go on by a recipe; None if it is unfinished."""
    earlier = folder.recipe().changed({"output": recipe.output})
    passing = passing_data(earlier)
    _check_unchanged(earlier, recipe, (*MAY_CHANGE, *passing))
    if (result := folder.result()) is None:
        check_data_is_there(folder.path, recipe, passing)
    else:
        _complete_copy(folder, recipe)
    return result


def _fetch_copy(folder: RunFolder, recipe: Recipe) -> None:
    """Copy a run from object storage, where another machine has brought it further."""
    place = recipe.train.mirror
    theirs = None if place is None else copied_recipe(place)
    if place is None or theirs is None:
        return
    theirs = theirs.changed({"output": recipe.output})
    _check_unchanged(theirs, recipe, (*MAY_CHANGE, *passing_data(theirs)))
    fetch_run(place, folder)


def _complete_copy(folder: RunFolder, recipe: Recipe) -> None:
    """Send what the copy of a finished run lacks."""
    if recipe.train.mirror is not None:
        Mirror(recipe.train.mirror, folder.path, lambda text: None).send()


def resume(
    path: str | Path,
    overrides: Overrides = (),
    *,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Continue a run that was stopped or killed, from its newest whole checkpoint.

    On the same machine with the same versions the result is the same, bit for bit, as without the
    interruption. A finished run is left as it is.

    Args:
        path: the folder of the run, or its copy in object storage (`train.mirror`), which goes on
            in the folder that the recipe names.
        overrides: of keys that may change.
        quiet: show no progress.
        callbacks: as for `train_recipe`.

    Raises:
        PretuneError: no run there, its recipe or data have changed, or they were in the memory of a
            program and are not handed in again.
        Interrupted: by SIGINT or SIGTERM; the last model is saved.
    """
    if is_url(path):
        copied = copied_recipe(str(path))
        if copied is None:
            raise RunError(f"{path}: no copy of a run here", "Give what train.mirror named.")
        recipe = copied.changed({"train.mirror": str(path)}).changed(overrides)
        return train_or_resume(recipe, quiet=quiet, callbacks=callbacks)
    folder = RunFolder(path)
    # The folder may have been moved since the run began.
    earlier = folder.recipe().changed({"output": str(path)})
    recipe = earlier.changed(overrides)
    passing = passing_data(earlier)
    _check_unchanged(earlier, recipe, (*MAY_CHANGE, *passing))
    world = environment_world()
    if (finished := folder.result()) is not None:
        if world.main:
            _complete_copy(folder, recipe)
        return finished
    check_data_is_there(path, recipe, passing)
    device = own_device(recipe.train.device, world)
    with joined(world, device), folder.locked() if world.main else nullcontext():
        run = _Run(recipe, folder, world, device, quiet=quiet, resumed=True, callbacks=callbacks)
        return run.go()


def starting_model(
    recipe: Recipe,
    task: AnyTask,
    data: Data,
    start: Path | None = None,
    *,
    mmap: bool = False,
    hollow: bool = False,
) -> Bundle:
    """Load the model that a recipe, or a checkpoint of its run, starts from; frozen as it says.

    Args:
        recipe: says which.
        task: gives it its head.
        data: for a new tokenizer.
        start: a checkpoint of the run.
        mmap: leave the weights in their files until they are read, where none is written to.
        hollow: no values at all, only sizes (see `pretune.bundle.bundle.load`).

    Raises:
        PretuneError: missing, damaged, or not suitable for the task.
    """
    model, lora = recipe.model, recipe.train.lora
    if lora is not None:
        check_lora(recipe)
        start = None  # a checkpoint's adapter belongs to the model that the run started from
    bundle = load(
        model.source if start is None else start,
        task=task,
        tokenizer=tokenizer_for(recipe, data) if start is None else None,
        config=model.config if start is None else None,
        layers=model.layers if start is None else None,
        dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        mmap=mmap,  # usually every weight is about to be written to
        allow_pickle=model.allow_pickle,
        hollow=hollow,
    )
    if is_int8(bundle.model):
        raise RunError(
            f"{model.source}: its weights are in 8 bits, which are not trained",
            "Train the model that it was made of, and quantize the result.",
        )
    bundle.columns = dict(recipe.data.columns)
    if isinstance(data, Records):  # those that were guessed
        own = own_columns(task)
        renamed = {ours: theirs for ours, theirs in data.renamed.items() if ours in own}
        bundle.columns = renamed | bundle.columns
    # Tokens are added once; a checkpoint has them already.
    known = bundle.tokenizer.vocab_size
    if start is None:
        grow_vocabulary(bundle, model.new_tokens, model.vocab_multiple)
    if lora is None:
        freeze(bundle.model, recipe.train.freeze)
    else:
        new = range(known, bundle.tokenizer.vocab_size)
        fresh = () if bundle.report is None else bundle.report.missing
        add_lora(bundle.model, lora.rank, lora.alpha, lora.targets, new, fresh=fresh)
    return bundle


class _Run:
    """One run, from its data to its result."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        world: World,
        device: torch.device,
        *,
        quiet: bool,
        resumed: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.recipe, self.folder, self.world, self.resumed = recipe, folder, world, resumed
        self.device = device
        self.reporter = Reporter(quiet=quiet or not world.main)
        self._say = self.reporter.say
        self.task = student_task(recipe)
        named = named_callbacks(recipe.train.callbacks)
        self.callbacks = Callbacks([*named, *given_callbacks(callbacks)], folder.path)
        self.lessons: Lessons | None = None
        self.mirror: Mirror | None = None

    def go(self) -> RunResult:
        """Read, load, train, and write the result."""
        with self.folder.filling(), self.reporter, ExitStack() as stack:
            # Everything is read and checked before the folder is touched.
            start = self.world.decided(self._newest) if self.resumed else None
            self._gather(start)
            self._equip()
            self._find_teachers()
            if start is not None:
                _check_unchanged_data(start, self.fingerprints, self.recipe)
            check_limits(
                self.recipe.train, self.task, self.bundle.model, self.train, self.validation
            )
            # Before anything is computed: what the run computes with stays the same to its end.
            self._choose_kernels(stack)
            self._open_folder(stack)
            self._compare_with_reference()
            self._ask_teachers()
            stop = stack.enter_context(StopRequest(self._say))
            stack.enter_context(determinism(self.recipe.train.deterministic))
            # From the checkpoint on, if there is one.
            store = self._store()
            trainer = self._trainer(store, stop)
            if start is not None:
                trainer.restore(store.read(start))
            if self.resumed:
                # From the beginning also the evaluation before the first update is made again.
                self.reporter.rewind(-1 if start is None else trainer.history.steps)
                where = start or "the beginning"
                self._say(f"resumed from {where}: update {trainer.history.steps}")
            self._say(_summary(trainer, self.world))
            history = self._fit(trainer, store, stop)
            result = _result(self.recipe, history, self.device, self.facts)
            if self.world.main:
                self.folder.finish(result)
        return result

    def _newest(self) -> Path | None:
        return newest_whole(self.folder.path, say=self._say)

    def _gather(self, start: Path | None) -> None:
        """Read the data, load the model and make the features."""
        task, reporter = self.task, self.reporter
        self.data, self.held_back = read_data(self.recipe)
        held_back, errors = self.held_back, self.recipe.data.errors
        fit(task, self.data)
        check_reference(task, self.recipe)
        check_batches_stay_whole(task, self.recipe.train, self.world)
        if isinstance(self.data, Records):
            # How the data were read is told before what is in them.
            looked = doubts(task, self.data, self.recipe.data)
            for remark in (*self.data.notes, *task.remarks(self.data), *looked):
                reporter.say(remark)
            self.data = replace(self.data, notes=())
        seed_everything(self.recipe.seed)
        sharded = self.world.shards(self.recipe.train.parallel)
        bundle = starting_model(self.recipe, task, self.data, start, mmap=sharded)
        self.bundle = bundle
        self.validation: Features | None = None
        # What one process of a machine has tokenized, its others read from the cache.
        with self.world.first_on_machine(really=FeatureCache.usual() is not None):
            self.train = read_features("train", task, self.data, bundle, reporter, errors=errors)
            if held_back is not None:
                what = ("validation", task, held_back, bundle, reporter)
                self.validation = read_features(*what, evaluation=True, errors=errors)
        if self.recipe.model.embeddings is not None and start is None:
            warm_embeddings(bundle, self.train, self.world, reporter)
        few = None
        if isinstance(task, Aligned) and self.validation is not None:
            few = task.few_replies(self.validation)
        if few:
            reporter.say(few)
        self.facts = self._data_facts()
        # Of data and frozen weights; kept with each checkpoint.
        self.fingerprints: dict[str, Any] = {
            "data": self.train.fingerprint(),
            "validation": None if self.validation is None else self.validation.fingerprint(),
            "base": frozen_digest(bundle.model),
            "models": {},
        }

    def _data_facts(self) -> dict[str, Any]:
        """What the result says about the data, where they are records."""
        parts = {"train": (self.data, self.train), "validation": (self.held_back, self.validation)}
        return {
            name: data_facts(records, features)
            for name, (records, features) in parts.items()
            if isinstance(records, Records) and features is not None
        }

    def _choose_kernels(self, stack: ExitStack) -> None:
        """Choose how matrices are multiplied on a CPU, or keep to what the run began with."""
        self.kernels: Choice | None = None
        if self.device.type == "cpu":
            self.kernels = chosen_kernels(
                *(self.folder.path, self.bundle.model, self.world),
                resumed=self.resumed,
                say=self._say,
            )
            stack.enter_context(kept(self.kernels))

    def _open_folder(self, stack: ExitStack) -> None:
        """Lock and create the run folder, and open the logs in it; only the main process does."""
        if self.world.main:
            if self.recipe.track.mlflow is not None:
                self.reporter.add(Mlflow(self.recipe, self.recipe.track.mlflow, self._say))
            if self.resumed:
                self.folder.reopen()
            else:
                stack.enter_context(self.folder.locked())
                self.folder.create(self.recipe)
                if self.recipe.train.mirror is not None:
                    clear_copy(self.recipe.train.mirror)
                self._say(str(self.bundle.report))
                if (layers := self.recipe.model.layers) is not None:
                    every_other = range(0, 2 * len(self.bundle.backbone.layers), 2)
                    which = every_other if layers == "every-other" else layers
                    self._say(f"layers kept: {', '.join(map(str, which))}")
                for line in () if self.lessons is None else self.lessons.remarks():
                    self._say(line)
            if self.kernels is not None:
                keep_kernels(self.folder.path, self.kernels)
            path = self.folder.path
            try:
                logs = JsonLines(path / METRICS), TensorBoard(path / EVENTS)
                self.reporter.add(*logs, SampleFile(path / SAMPLES))
            except (IsADirectoryError, FileExistsError, NotADirectoryError) as error:
                raise RunError(
                    f"{error.filename or path}: cannot be written ({error.strerror})",
                    "Something else lies there; remove it and continue with pretune train --resume "
                    f"{path}.",
                ) from None
            if self.recipe.train.mirror is not None:
                self.mirror = Mirror(self.recipe.train.mirror, path, self._say)
                stack.enter_context(self.mirror)
        self._check_shared_folder()

    def _check_shared_folder(self) -> None:
        """Wait until the folder is there, and check that all machines see it."""
        world = self.world
        world.wait()
        if world.size == world.local_size:
            return
        # A network file system may show it later.
        deadline = time.monotonic() + 60.0
        while not self.folder.exists() and time.monotonic() < deadline:
            time.sleep(0.5)
        seen = world.gather((platform.node(), self.folder.exists()))
        if blind := sorted({machine for machine, sees in seen if not sees}):
            raise RunError(
                f"{self.folder.path}: cannot be seen from {', '.join(blind)}",
                "Several machines need a folder that they share: output=FOLDER.",
            )

    def _equip(self) -> None:
        """Give a task what its replies are scored by: its reward, its judge and its reference."""
        task, train = self.task, self.recipe.train
        if not isinstance(task, HasReference):
            return
        scorer = partial(
            reward_function,
            device=self.device,
            precision=train.precision,
            tokenizer=self.bundle.tokenizer,
        )
        if isinstance(task, MakesExperience):
            task.rewarding = scorer(named_reward(task))
            self._remember("task.reward", reward_models(task.reward))
        if task.judge is not None:
            task.judging = scorer(task.judge, key="judge")
            self._remember("task.judge", reward_models(task.judge))
        if task.reference is None:
            return
        start = self.recipe.model.source
        if task.reference == "start":
            task.reference_source, task.reference_seed = start, self.recipe.seed
        else:
            task.reference_source = task.reference
        # The data's scores are kept, but what the model will write is not known yet.
        if not reads_replies(task, validated=self.validation is not None):
            return
        if task.reference == "start" and train.lora is not None:
            # The model below its adapters: one copy of the weights.
            task.reference_model = partial(_below_adapters, self.bundle.model)
            return
        model = self._reference_model(task)
        if model is self.bundle.model:
            model = copy.deepcopy(model)
        task.reference_model = frozen(model, self.device)
        self._remember("task.reference", [task.reference_source])

    def _remember(self, key: str, sources: Sequence[str]) -> None:
        """Add the files of models to the fingerprints, which are kept with each checkpoint."""
        for source in sources:
            digest = files_digest(find_source(source), (TENSORS, VALUES))
            self.fingerprints["models"][f"{source} ({key})"] = digest

    def _compare_with_reference(self) -> None:
        """Give the features the scores of the frozen reference, if the task has one."""
        task = self.task
        if not isinstance(task, ComparesWithReference) or not isinstance(task, HasReference):
            return
        if task.reference is None:
            return
        known = {name: self.fingerprints[name] for name in ("data", "validation")}
        key = scores_key(known, f"{task.reference_source} {self.recipe.seed}")
        # The main process computes them, unless the run did so before it was stopped.
        if self.world.main and read_scores(self.folder.path, key) is None:
            held = task.reference_model
            model = held if isinstance(held, nn.Module) else self._reference_model(task)
            keep_scores(self.folder.path, key, self._reference_scores(task, model))
        self.world.wait()
        scores = read_scores(self.folder.path, key)
        if scores is None:
            raise RunError(
                f"{self.folder.path / REFERENCE_FILE}: the scores of the reference are not finite "
                "numbers, or cannot be read",
                "Look at the reference (task.reference): does it give numbers for these data?",
            )
        self.train = with_scores(self.train, scores["train"])
        if self.validation is not None:
            self.validation = with_scores(self.validation, scores["validation"])

    def _find_teachers(self) -> None:
        """Load the models that the student learns from, if there are any, and check them."""
        task, section = self.task, self.recipe.teacher
        if not isinstance(task, Taught) or section is None:
            return
        sets = (self.train, self.validation)
        self.lessons = Lessons.of(self.recipe, self.task, self.bundle, sets, self.device)
        self._remember("teacher.from", section.source)
        if not self.lessons.kept:
            task.live = self.lessons.live()
        task.teaching = self.lessons.how
        if isinstance(self.held_back, Records) and not task.labelled(self.held_back):
            task.without_labels()
            self._say(
                "validation: no record has a label, so the figures compare with the teacher alone"
            )

    def _ask_teachers(self) -> None:
        """Give the features what the teachers say, where that is asked once."""
        lessons, self.lessons = self.lessons, None
        if lessons is None or not lessons.kept:
            return
        files = self.fingerprints["models"]
        known = {name: self.fingerprints[name] for name in ("data", "validation")}
        key = scores_key(known, lessons_key(lessons.section, self.task, files))
        path, sets = self.folder.path, {"train": self.train, "validation": self.validation}
        # The main process asks, unless the run did so before it was stopped.
        if self.world.main and read_scores(path, key) is None:
            if (note := lessons.check_room(path, [*sets.values()])) is not None:
                self._say(note)
            kept: dict[str, Array] = {}
            for name, records in (("train", self.data), ("validation", self.held_back)):
                features = sets[name]
                if features is None:
                    continue
                assert isinstance(features, FeatureSet)  # noqa: S101 - else nothing is kept
                assert isinstance(records, Records)  # noqa: S101
                with self.reporter.working(f"teacher: {name}", len(features)) as done:
                    given = lessons.outputs(features, records, done)
                kept |= {f"{name}.{target}": values for target, values in given.items()}
            keep_scores(path, key, kept)
        self.world.wait()
        targets = read_scores(path, key)
        if targets is None:
            raise RunError(
                f"{path / REFERENCE_FILE}: the outputs of the teacher are not finite numbers, or "
                "cannot be read",
                "Look at the teacher (teacher.from): does it give numbers for these data?",
            )

        def part(name: str) -> dict[str, Array]:
            start = f"{name}."
            own = (item for item in targets.items() if item[0].startswith(start))
            return {target.removeprefix(start): values for target, values in own}

        self.train = with_targets(self.train, part("train"))
        if self.validation is not None:
            self.validation = with_targets(self.validation, part("validation"))

    def _reference_scores(self, task: ComparesWithReference, model: nn.Module) -> dict[str, Array]:
        """Compute the scores of all features by the reference, by the name of their data."""
        model = model.to(self.device)
        sets = {"train": self.train, "validation": self.validation}
        scores = {}
        for name, features in sets.items():
            if features is None:
                continue
            with self.reporter.working(f"reference: {name}", len(features)) as done:
                scores[name] = reference_scores(
                    *(task, model, features),
                    device=self.device,
                    precision=self.recipe.train.precision,
                    progress=done,
                )
        return scores

    def _reference_model(self, task: HasReference) -> nn.Module:
        # The model itself is the reference until it learns; a checkpoint has learned already.
        if task.reference != "start":
            return load_reference(self.bundle, task)
        if not self.resumed:
            return self.bundle.model
        seed_everything(self.recipe.seed)
        # Loading binds a task to the tokenizer it loads: the run's own is not given away.
        own = self.task.with_state(self.task.state())
        return starting_model(self.recipe, own, self.data).model

    def _store(self) -> RunCheckpoints:
        options = self.recipe.train
        # The newest checkpoint may be from within the trouble that a rollback must undo.
        least = 2 if options.guard.action == "rollback" else 1
        return RunCheckpoints(
            self.folder.path,
            self.bundle,
            keep=max(options.keep, least),
            background=options.background_save,
            world=self.world,
            extra=self.fingerprints,
            say=self._say,
            published=self._published,
        )

    def _published(self) -> None:
        if self.mirror is not None:
            self.mirror.soon()

    def _trainer(self, store: RunCheckpoints, stop: StopRequest) -> Trainer:
        """Put the model on its device, spread it over the processes, and make its trainer."""
        model, parallel = self.bundle.model, self.recipe.train.parallel
        if not self.world.shards(parallel):  # of those only its shard goes there
            model.to(self.device)
        set_modes(model, self.recipe.train, self.device)
        if self.world.size > 1:
            first = self._first_batch().to(self.device)

            def trial() -> Tensor:
                return self.task.loss(self.task.forward(model, first), first).sum

            self.world.spread(model, parallel, self.device, trial)
            seed_process(self.recipe.seed, self.world)
        return Trainer(
            self.task,
            model,
            self.train,
            self.validation,
            options=self.recipe.train,
            seed=self.recipe.seed,
            device=self.device,
            reporter=self.reporter,
            store=store,
            should_stop=stop,
            name_record=self.data.where,
            world=self.world,
            callbacks=self.callbacks,
        )

    def _first_batch(self) -> PackedBatch:
        if isinstance(self.task, MakesExperience):
            assert isinstance(self.train, FeatureSet)  # noqa: S101 - made of records
            return self.task.rehearsal(self.train)
        return drawn(self.task, self.train.batch(np.array([0])), seed=0, epoch=0)

    def _fit(self, trainer: Trainer, store: RunCheckpoints, stop: StopRequest) -> TrainingHistory:
        """Train, and wait until every checkpoint is written however training ends."""
        try:
            history = trainer.fit()
        except Stopped as stopped:
            store.flush()
            raise Interrupted(self.folder.path, stopped.step, stop.signal) from None
        except PretuneError as error:
            store.finish()
            if isinstance(error, RewardError | OwnCodeError):
                again = resume_command(self.folder.path)
                error.hint = f"{error.hint}\n  Once it is mended, the run goes on: {again}"
            raise
        store.flush()
        return history


def _below_adapters(model: nn.Module, batch: PackedBatch, **options: Any) -> Any:
    with without_adapters(model):
        return model(batch, **options)


def _check_unchanged(earlier: Recipe, recipe: Recipe, may_change: Sequence[str]) -> None:
    """Check that a resumed run has the recipe it was started with, but for some keys."""
    differing = [
        line
        for line in RunFolder.differences(earlier.to_dict(), recipe.to_dict())
        if not line.startswith(tuple(f"{key}{end}" for key in may_change for end in ":."))
    ]
    if differing:
        raise RunError(
            "a resumed run continues as it began, but the recipes differ in\n  "
            + "\n  ".join(differing),
            "Start a new run from its weights: pretune train RECIPE model.from=RUN/last "
            "output=FOLDER. Only these may change: " + ", ".join(MAY_CHANGE) + ".",
        )


def _check_unchanged_data(start: Path, now: Mapping[str, Any], recipe: Recipe) -> None:
    """Check that a resumed run has the data and the frozen weights it was started with."""
    then = read_values(start)
    if then.get("data") != now["data"]:
        wrong = "was trained on other data than data.train gives now"
    # A checkpoint of an early version does not tell what it was evaluated on.
    elif "validation" in then and then["validation"] != now["validation"]:
        wrong = "was evaluated on other data than data.validation gives now"
    elif changed := [
        name
        for name, digest in now["models"].items()
        if then.get("models", {}).get(name, digest) != digest
    ]:
        wrong = f"was trained beside other files of {', '.join(changed)} than there are now"
    else:
        check_base(then.get("base"), now["base"], start, recipe.model.source)
        return
    raise RunError(
        f"{start}: {wrong}",
        "Put the data back as it was; or start a new run from these weights: "
        f"pretune train RECIPE model.from={start} output=FOLDER",
    )


def _summary(trainer: Trainer, world: World) -> str:
    """One line on what is about to be trained."""
    everything = sum(p.numel() for p in trainer.model.parameters())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = "" if trained == everything else f" of {everything:,} ({trained / everything:.1%})"
    where = str(trainer.device) if world.size == 1 else f"{world.size} processes"
    return (
        f"training {trained:,}{share} parameters on {where} for {trainer.total:,} updates "
        f"({trainer.schedule.warmup:,} of them warming up)"
    )


def _result(
    recipe: Recipe, history: TrainingHistory, device: torch.device, data: dict[str, Any]
) -> RunResult:
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
        stopped_on=history.stopped_on,
        warnings=history.warnings,
        data=data,
    )
