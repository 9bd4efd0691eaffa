"""A run's folder: what lies where, and what may be written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pretune import yaml12
from pretune.errors import PretuneError, RunError
from pretune.hub import atomic_text
from pretune.recipe import Recipe

RECIPE, RESULT, METRICS, EVENTS, CHECKPOINTS = (
    "recipe.yaml",
    "result.json",
    "metrics.jsonl",
    "events",
    "checkpoints",
)
_OURS = (RESULT, METRICS, EVENTS, CHECKPOINTS, "best", "last", RECIPE)


class RunFolder:
    """Where a run keeps everything.

    recipe.yaml          what ran, every default written out
    checkpoints/step-N/  models in the Hugging Face layout, with the tokenizer and the task
    best, last           links to two of them
    metrics.jsonl        the course of the training, one JSON object a line
    events/              the same for TensorBoard
    result.json          the outcome; there once the run is finished
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def check(self, recipe: Recipe, *, overwrite: bool = False) -> None:
        """Whether a new run may be written here; touches nothing.

        Raises:
            RunError: it holds a run already, or files that are not a run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"{self.path}: is a file, not a folder", "Choose another: output=FOLDER."
            )
        if (self.path / RECIPE).is_file():
            if not overwrite:
                raise self._taken(recipe)
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise RunError(
                f"{self.path}: holds files that are not a run of pretune; nothing is written there",
                "Choose another folder: output=FOLDER.",
            )

    def create(self, recipe: Recipe) -> None:
        """Make the folder, without what an earlier run left there.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if (self.path / RECIPE).is_file():
                self._clear()
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_text(self.path / RECIPE, recipe.to_yaml())
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror})",
                "Choose another: output=FOLDER.",
            ) from None

    def _taken(self, recipe: Recipe) -> RunError:
        state = "a finished" if (self.path / RESULT).is_file() else "an unfinished"
        try:
            earlier = yaml12.parse((self.path / RECIPE).read_text(encoding="utf-8"), RECIPE)
            differing = sorted(self.differences(earlier, recipe.to_dict()))
        except (PretuneError, UnicodeDecodeError):
            differing = ["(its recipe cannot be read)"]
        # Where it is written does not make it another run.
        differing = [key for key in differing if not key.startswith("output:")]
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
        """Remove an earlier run: only what a run writes, the recipe last."""
        for name in _OURS:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """What ran here.

        Raises:
            RunError: nothing did.
        """
        path = self.path / RECIPE
        if not path.is_file():
            raise RunError(
                f"{self.path}: no run here (no {RECIPE})", "Give the output folder of a run."
            )
        return Recipe.load(path)

    def result(self) -> dict[str, Any] | None:
        """What came out, if the run is finished.

        Raises:
            RunError: its file is damaged.
        """
        path = self.path / RESULT
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunError(
                f"{path}: damaged ({error})", "Remove it, and the run can be resumed."
            ) from None
        return found

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the outcome."""
        text = json.dumps(result, ensure_ascii=False, indent=2)
        atomic_text(self.path / RESULT, text + "\n")

    @staticmethod
    def differences(old: Any, new: Any, key: str = "") -> Iterator[str]:
        """`key: old value there, new value now` of everything that differs."""
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            for name in {**old, **new}:
                below = f"{key}.{name}" if key else str(name)
                yield from RunFolder.differences(old.get(name), new.get(name), below)
        elif old != new:
            yield f"{key}: {yaml12.inline(old)} there, {yaml12.inline(new)} now"
