"""A sweep: many short trainings in search of good values for a recipe.

Optuna chooses what to try (by default tree-structured Parzen estimators: Bergstra et al. 2011,
"Algorithms for Hyper-Parameter Optimization", section 4) and keeps the study in an SQLite file, so
that a sweep that was stopped, or killed, goes on with the same command.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pretune.checkpoints.atomic_io import atomic_text, make_folder
from pretune.errors import PretuneError, RecipeError, RunError, did_you_mean
from pretune.experiments.search_space import Space, check_spaces
from pretune.host import take_lock
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.tasks.added_metrics import AllMetrics, lower_is_better
from pretune.tasks.builtin import task_class
from pretune.training.data import fit, read_data
from pretune.training.run import train_recipe
from pretune.training.stop import Interrupted
from pretune.training.tracking import flat

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

BEST = "best.yaml"
STUDY = "study.db"
LOCK = "sweep.lock"
Direction = Literal["auto", "maximize", "minimize"]


@dataclass(frozen=True)
class TrialResult:
    """The result of one training of a sweep."""

    number: int  # its run folder is `output/trial-NUMBER`
    # Failed: it diverged, or the recipe refuses the values; stopped: to be tried again.
    state: Literal["finished", "failed", "stopped"]
    values: dict[str, Any]
    metric: float | None
    seconds: float | None  # wall-clock time; None if it was killed
    folder: str
    error: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    output: str
    metric: str
    direction: Literal["maximize", "minimize"]
    trials: tuple[TrialResult, ...]  # finished ones, best first, then the others by number
    best_recipe: str | None  # a file; None if no trial finished

    @property
    def done(self) -> int:
        """Number of trials that need not be repeated."""
        return sum(trial.state != "stopped" for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


class SweepStopped(Exception):  # noqa: N818 - not an error
    """Raised when a signal stops the sweep; finished trials are kept, in `result`."""

    def __init__(self, result: SweepResult, signal: int) -> None:
        super().__init__(f"stopped after {result.done} trials")
        self.result, self.signal = result, signal


@dataclass
class Sweep:
    """A search for good values of a recipe."""

    recipe: Recipe  # its output folder is the folder of the sweep
    spaces: Sequence[Space]
    metric: str | None = None  # default: the one that picks the best checkpoint
    direction: Direction = "auto"  # `auto` goes by the name of the metric
    study: str | Path | None = None  # the SQLite file; default `output/study.db`
    seed: int = 0
    quiet: bool = False
    say: Callable[[str], None] = field(default=lambda text: None)

    def run(self, trials: int) -> SweepResult:
        """Train until there are `trials` trials, including trials of earlier calls.

        A trial fails if it diverges or if the recipe refuses its combination of values. A trial
        that was killed is tried again.

        Raises:
            PretuneError: bad ranges, data or model; another sweep's study; every trial failed.
            SweepStopped: SIGINT or SIGTERM arrived.
        """
        check_spaces(self.recipe, list(self.spaces))
        metric = self._checked_metric()
        _optuna()  # missing: an error before any folder is made
        with _locked(self._output):
            study = self._open(metric)
            self._repeat_killed(study)
            while (current := self._result(study, metric)).done < trials:
                self._try(study, metric, f"{current.done + 1} of {trials}")
        if current.best_recipe is None:
            errors = [trial.error for trial in current.trials if trial.error]
            raise RunError(
                f"{self._output}: all {len(errors)} trials failed; the last one: {errors[-1]}",
                "Try ranges that start lower, in another folder: output=FOLDER.",
            )
        return current

    @property
    def _output(self) -> Path:
        return Path(self.recipe.output)

    def _folder(self, number: int) -> str:
        return str(self._output / f"trial-{number}")

    def _checked_metric(self) -> str:
        """Return the name of the metric; the data is read to learn which metrics there are."""
        kind = task_class(self.recipe.task.name)
        name = self.metric or self.recipe.train.best or kind.best_by
        records, held_out = read_data(self.recipe)
        if held_out is None:
            raise RunError(
                "a sweep compares metrics of validation data, and the recipe has none",
                "Give data.validation=FILE, or hold some back: data.validation=0.1",
            )
        # Which metrics there are may depend on the data, such as on its labels.
        task = kind(self.recipe.task)
        fit(task, records)
        known = ["loss", *AllMetrics.of(task).result()]
        if name not in known:
            raise RunError(f"no metric is called '{name}'", did_you_mean(name, known))
        return name

    def _open(self, metric: str) -> optuna.Study:
        """Open or create the study; refuse one of another sweep, or a file that is none."""
        from sqlalchemy import URL
        from sqlalchemy.exc import SQLAlchemyError

        lib = _optuna()
        path = Path(self.study or self._output / STUDY)
        # Optuna and SQLAlchemy raise errors of many kinds for a file that is no study.
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            storage = lib.storages.RDBStorage(
                URL.create("sqlite", database=str(path)).render_as_string()
            )
            study: optuna.Study = lib.create_study(
                storage=storage,
                study_name="pretune",
                direction=self._direction(metric),
                load_if_exists=True,
            )
            # Another sweep may have left a study of other keys or ranges.
            self._check_same_sweep(study, self._described(metric), path)
        except (OSError, SQLAlchemyError, RuntimeError, lib.exceptions.OptunaError) as error:
            reason = str(error).split("\n")[0]
            raise RunError(
                f"{path}: is no study of pretune's, or cannot be written ({reason})",
                "Name another file with --study FILE.db.",
            ) from None
        # A trial's folder that the study does not know belongs to somebody else.
        known = {trial.number for trial in study.get_trials(deepcopy=False)}
        for folder in sorted(self._output.glob("trial-*")):
            number = folder.name.removeprefix("trial-")
            if not number.isdecimal() or int(number) not in known:
                raise RunError(
                    f"{folder}: exists, but {path} knows no such trial",
                    "Choose another folder with output=FOLDER, or remove this one.",
                )
        return study

    def _direction(self, metric: str) -> Literal["maximize", "minimize"]:
        if self.direction != "auto":
            return self.direction
        return "minimize" if lower_is_better(metric) else "maximize"

    def _described(self, metric: str) -> dict[str, str]:
        """Return what all trials of a study have in common, by names for an error message."""
        given = {key: text for key, text in flat(self.recipe).items() if key != "output"}
        given = {key: text for key, text in given.items() if not key.startswith("track.")}
        ranges = {f"--over {space.key}": space.text for space in self.spaces}
        for space in self.spaces:
            given.pop(space.key, None)
        return {
            **given,
            **ranges,
            "--metric": metric,
            "--direction": self._direction(metric),
            "--seed": str(self.seed),
        }

    def _check_same_sweep(self, study: optuna.Study, now: Mapping[str, str], path: Path) -> None:
        """Note in a new study what its trials have in common; compare it in an old one."""
        then = study.user_attrs.get("sweep")
        if then is None and not study.get_trials(deepcopy=False):
            study.set_user_attr("sweep", dict(now))
            return
        there = then or {}
        differing = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        if differing:
            shown = [f"{key}: {there.get(key)} there, {now.get(key)} now" for key in differing[:8]]
            raise RunError(
                "\n  ".join([f"{path}: holds another sweep; they differ in", *shown]),
                "Choose another folder with output=FOLDER, or repeat the command as it was.",
            )

    def _repeat_killed(self, study: optuna.Study) -> None:
        """Fail the trials that were training when the process died, and queue them again."""
        running = _optuna().trial.TrialState.RUNNING
        for trial in study.get_trials(deepcopy=False, states=(running,)):
            self.say(f"trial {trial.number} was killed; it is tried again")
            self._give_back(study, trial.number, trial.params)

    def _give_back(self, study: optuna.Study, number: int, params: Mapping[str, Any]) -> None:
        study.tell(number, state=_optuna().trial.TrialState.FAIL)
        if params:
            study.enqueue_trial(dict(params))

    def _try(self, study: optuna.Study, metric: str, place: str) -> None:
        """Choose values, train with them, and tell the study what came out."""
        # Seeded by the number of the trial: a sweep that was stopped continues as if it had not.
        upcoming = len(study.get_trials(deepcopy=False))
        state = np.random.SeedSequence([self.seed, upcoming]).generate_state(1)
        study.sampler = _optuna().samplers.TPESampler(seed=int(state[0]))
        trial = study.ask()
        values = {space.key: space.value(_draw(trial, space)) for space in self.spaces}
        shown = "  ".join(f"{key}={yaml12.inline(value)}" for key, value in values.items())
        self.say(f"trial {trial.number} ({place}): {shown}")
        folder, mirror = self._folder(trial.number), self.recipe.train.mirror
        places = {"output": folder, "train.mirror": mirror and f"{mirror}/{Path(folder).name}"}
        chosen = {**values, **places, **self._picked_by(metric)}
        try:
            value = self._value(chosen, metric)
        except BaseException as error:
            if isinstance(error, PretuneError) and self._due_to_values(error):
                trial.set_user_attr("error", error.message)
                study.tell(trial, state=_optuna().trial.TrialState.FAIL)
                self.say(f"trial {trial.number} failed: {error.message}")
                return
            # Anything else, an interruption included, says nothing about the values.
            self._give_back(study, trial.number, trial.params)
            if isinstance(error, Interrupted | KeyboardInterrupt):
                number = getattr(error, "signal", signal.SIGINT)
                raise SweepStopped(self._result(study, metric), number) from None
            raise
        study.tell(trial, value)
        self.say(f"trial {trial.number}: {metric} {value:.4f}")

    def _value(self, chosen: Mapping[str, Any], metric: str) -> float:
        """Train with the chosen values and return the metric."""
        result = train_recipe(self.recipe.changed(chosen), quiet=self.quiet)
        value = result.metrics[metric]
        if not math.isfinite(value):
            raise RunError(f"{metric} is {value}")
        return value

    def _due_to_values(self, error: PretuneError) -> bool:
        """Tell whether other values may succeed.

        If only keys of `train` are searched, data or a model that cannot be read fails every trial.
        """
        sections = {space.key.partition(".")[0] for space in self.spaces}
        return isinstance(error, RecipeError | RunError) or sections != {"train"}

    def _picked_by(self, metric: str) -> dict[str, str]:
        """Pick the best checkpoint by the metric of the sweep, unless the recipe names another."""
        return {} if self.recipe.train.best else {"train.best": metric}

    def _result(self, study: optuna.Study, metric: str) -> SweepResult:
        """Collect the trials so far, and write the recipe of the best."""
        direction = self._direction(metric)
        over = [trial for trial in study.get_trials(deepcopy=False) if self._over(trial)]
        trials = [self._trial_result(trial) for trial in over]
        sign = 1 if direction == "minimize" else -1
        finished = [trial for trial in trials if trial.metric is not None]
        finished.sort(key=lambda trial: sign * (trial.metric or 0.0))
        # The file is written only if another trial has become the best.
        best = None
        if finished:
            values = {**finished[0].values, "output": str(self._output / "best")}
            best = self._output / BEST
            recipe = self.recipe.changed({**values, **self._picked_by(metric)})
            if not best.is_file() or best.read_text(encoding="utf-8") != recipe.to_yaml():
                atomic_text(best, recipe.to_yaml())
        rest = [trial for trial in trials if trial.metric is None]
        return SweepResult(
            str(self._output),
            metric,
            direction,
            (*finished, *rest),
            None if best is None else str(best),
        )

    def _over(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial is over and all its values had been drawn."""
        return trial.state.is_finished() and all(s.key in trial.params for s in self.spaces)

    def _trial_result(self, trial: FrozenTrial) -> TrialResult:
        error = trial.user_attrs.get("error")
        finished = trial.value is not None
        return TrialResult(
            number=trial.number,
            state="finished" if finished else "failed" if error else "stopped",
            values={space.key: space.value(trial.params[space.key]) for space in self.spaces},
            metric=trial.value,
            seconds=None if trial.duration is None else trial.duration.total_seconds(),
            folder=self._folder(trial.number),
            error=error,
        )


def _draw(trial: optuna.Trial, space: Space) -> Any:
    if space.choices:
        return trial.suggest_categorical(space.key, space.choices)
    assert space.low is not None  # noqa: S101 - for the type checker
    assert space.high is not None  # noqa: S101 - for the type checker
    if space.whole:
        return trial.suggest_int(space.key, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(space.key, space.low, space.high, log=space.log)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise RunError(
            f"a sweep needs Optuna ({error})", "Install it with: pip install 'pretune[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder of a sweep; the system releases the lock when the process dies."""
    try:
        make_folder(folder)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written ({error.strerror})", "Choose another: output=FOLDER."
        ) from None
    with handle:
        if not take_lock(handle):
            raise RunError(
                f"{folder}: another sweep is at work there", "Wait for it, or use output=FOLDER."
            )
        yield
