"""A run's folder: what lies where, and what may be written over."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretune.checkpoints.atomic_io import (
    atomic_text,
    check_new_name,
    is_aside,
    make_folder,
    sweep,
)
from pretune.errors import PretuneError, RunError
from pretune.host import take_lock
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.training.reference_scores import REFERENCE_FILE
from pretune.training.run_kernels import KERNELS_FILE
from pretune.training.run_result import RunResult
from pretune.training.sample_sheet import SAMPLES

RECIPE, RESULT, METRICS = "recipe.yaml", "result.json", "metrics.jsonl"
EVENTS, CHECKPOINTS = "events", "checkpoints"
#: Locked by the process that trains, whose number it holds.
RUN_LOCK = ".lock"
#: What a run writes in addition to its recipe; links stand before what they point at.
OURS = (
    *(RESULT, METRICS, EVENTS, "best", "last"),
    *(CHECKPOINTS, REFERENCE_FILE, SAMPLES, KERNELS_FILE),
)
#: Errors of a disk that is full or read-only.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class RunFolder:
    """The folder of a run.

    recipe.yaml          what ran, every default written out
    checkpoints/step-N/  models in the Hugging Face layout, with the tokenizer and the task
    best, last           links to two of them
    metrics.jsonl        the figures of the training, one JSON object per line
    events/              the same for TensorBoard
    kernels.json         the kernels that multiply matrices, chosen when the run began
    result.json          the outcome, once the run is finished
    samples.jsonl        replies before and after training, for tasks that are evaluated before it
    reference.safetensors  the scores of a frozen reference, for tasks that have one
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._overwrite = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context that keeps other processes from training into this folder.

        Two would remove each other's checkpoints. The lock is the operating system's (flock), so it
        ends with the process in any case. On a file system without locks nobody is kept out.

        Raises:
            RunError: another process trains there, or the folder cannot be written.
        """
        try:
            make_folder(self.path)
            file = (self.path / RUN_LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise self._not_writable(error) from None
        with file:
            if not take_lock(file):
                file.seek(0)  # the file says which process holds it
                raise RunError(
                    f"{self.path}: {file.read().strip() or 'another process'} is training "
                    "into this folder now",
                    "Wait for it or stop it; or choose another folder: output=FOLDER.",
                )
            with suppress(OSError):  # the lock holds on a full disk too
                file.truncate(0)
                print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
            yield

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Context that explains a disk that is full or read-only while a run writes."""
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise RunError(
                f"{error.filename or self.path}: cannot be written ({error.strerror})",
                f"Make room, then go on: pretune train --resume {self.path}",
            ) from None

    def check(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Check that a new run may be written here; touches nothing."""
        self._overwrite = overwrite
        check_new_name(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"{self.path}: is a file, not a folder", "Choose another: output=FOLDER."
            )
        # A run; or files of somebody else, which are never touched.
        if (self.path / RECIPE).is_file():
            if not overwrite:
                raise self._taken(recipe)
        elif self.path.is_dir() and not all(
            path.name == RUN_LOCK or is_aside(path) for path in self.path.iterdir()
        ):
            raise RunError(
                f"{self.path}: holds files that are not a run of pretune; nothing is written there",
                "Choose another folder: output=FOLDER.",
            )

    def create(self, recipe: Recipe) -> None:
        """Make the folder for a new run, and delete an earlier run in it."""
        self.check(recipe, overwrite=self._overwrite)
        try:
            make_folder(self.path)
            self._clear()
            sweep(self.path)
            atomic_text(self.path / RECIPE, recipe.to_yaml())
        except OSError as error:
            raise self._not_writable(error) from None

    def reopen(self) -> None:
        """Remove what killed processes left half-written here; to be called under the lock."""
        try:
            sweep(self.path)
        except OSError as error:
            raise self._not_writable(error) from None

    def _not_writable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path}: cannot be written ({error.strerror})", "Choose another: output=FOLDER."
        )

    def exists(self) -> bool:
        """Whether a run is here, finished or not."""
        return (self.path / RECIPE).is_file()

    def holds(self, recipe: Recipe) -> bool:
        """Whether a run of this very recipe is here, finished or not."""
        return self.exists() and not self._differing(recipe)

    def _differing(self, recipe: Recipe) -> list[str]:
        """How the recipe of the run here differs, a line per key."""
        try:
            earlier = self.recipe().to_dict()
            differing = sorted(self.differences(earlier, recipe.to_dict()))
        except PretuneError:
            differing = ["(its recipe cannot be read)"]
        # Another folder does not make it another run.
        return [key for key in differing if not key.startswith("output:")]

    def _taken(self, recipe: Recipe) -> RunError:
        state = "a finished" if (self.path / RESULT).is_file() else "an unfinished"
        differing = self._differing(recipe)
        if differing:
            shown = "\n  ".join(["they differ in", *differing[:8]])
            message = f"{self.path}: already holds {state} run of another recipe; {shown}"
        else:
            message = f"{self.path}: already holds {state} run of this very recipe"
        return RunError(
            message,
            "Choose another with output=FOLDER, or add --overwrite to delete the earlier run."
            if (self.path / RESULT).is_file()
            else f"Go on with it: pretune train --resume {self.path}; or choose another with "
            "output=FOLDER, or add --overwrite to delete it.",
        )

    def _clear(self) -> None:
        """Remove an earlier run: only what a run writes, except the recipe, which is replaced."""
        for name in OURS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The recipe of the run."""
        path = self.path / RECIPE
        if not os.path.isfile(path):  # also of a name that no file can have
            raise RunError(
                f"{self.path}: no run here (no {RECIPE})", "Give the output folder of a run."
            )
        recipe = Recipe.load(path)
        # Before there was the option, records were held back at random: an old run keeps its own.
        if "stratify" not in recipe.data.model_fields_set:
            return recipe.changed({"data.stratify": False})
        return recipe

    def result(self) -> RunResult | None:
        """The outcome; None if the run is unfinished."""
        path = self.path / RESULT
        if not path.is_file():
            return None
        try:
            return RunResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, AttributeError) as error:
            reason = str(error).replace("RunResult.__init__() ", "")
            raise RunError(
                f"{path}: damaged ({reason})", "Remove it, and the run can be resumed."
            ) from None

    def finish(self, result: RunResult) -> None:
        """Write the outcome."""
        text = json.dumps(result.to_dict(), ensure_ascii=False, indent=2)
        try:
            atomic_text(self.path / RESULT, text + "\n")
        except OSError as error:
            raise RunError(
                f"{self.path / RESULT}: cannot be written ({error.strerror}); the model is saved",
                f"Make room, then write it: pretune train --resume {self.path}",
            ) from None

    @staticmethod
    def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
        """Lines `key: old value there, new value now` for everything that differs."""
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in {**old, **new}:
                below = f"{key}.{name}" if key else str(name)
                yield from RunFolder.differences(old.get(name), new.get(name), below)
        elif old != new:
            yield f"{key}: {yaml12.inline(old)} there, {yaml12.inline(new)} now"
