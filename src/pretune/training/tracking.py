"""The figures of a run in MLflow.

A thread sends them, so that a slow server does not slow training down and a missing one does not
end it: what could not be sent is kept and tried again.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from typing_extensions import override

from pretune.checkpoints.atomic_io import atomic_text
from pretune.errors import RunError
from pretune.inference.runtime import choose_device
from pretune.recipe import yaml12
from pretune.recipe.recipe import Recipe
from pretune.training.logging import Sink
from pretune.training.run_folder import EVENTS, RECIPE, RESULT
from pretune.training.run_result import environment
from pretune.training.sample_sheet import SAMPLES
from pretune.training.stop import Interrupted

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

#: Seconds between two tries after a failure, and the longest wait at the end of the run.
RETRY_SECONDS, CLOSE_SECONDS = 10.0, 30.0
#: The limits of one request to MLflow, and the characters of a parameter shown in its table.
MAX_METRICS, MAX_PARAMS, MAX_TEXT = 1000, 100, 500
_NO_NAME = re.compile(r"[^\w.\-/ :]")
#: Defaults for MLflow's environment variables: answers within seconds, no telemetry, and nothing on
#: standard output, which is for results.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def flat(recipe: Recipe) -> dict[str, str]:
    """Every value of a recipe by its key, in YAML on one line: `train.learning_rate`: `5e-05`."""

    def walk(section: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
        plain = section.model_dump(mode="json")
        for name, item in type(section).model_fields.items():
            key, value = prefix + (item.alias or name), getattr(section, name)
            if isinstance(value, BaseModel):
                yield from walk(value, key + ".")
            elif name in plain:  # left out where it says nothing, such as `task.metrics`
                yield key, yaml12.inline(plain[name])

    return dict(walk(recipe, ""))


class Mlflow(Sink):
    """A run in MLflow: the recipe as parameters and artifact, the figures and the outcome.

    A resumed run continues its run in MLflow.
    """

    def __init__(self, recipe: Recipe, uri: str, say: Callable[[str], None]) -> None:
        self._recipe, self._uri, self._say = recipe, uri, say
        self._folder = Path(recipe.output)
        self._client, self._experiment = _connect(uri, recipe.track.experiment)
        self._run: str | None = None
        self._pending: list[Metric] = []
        self._lock = threading.Lock()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._complained = False
        # Whoever trains may be handling an exception already, which is not the run's.
        self._around = sys.exc_info()[1]
        self._thread = threading.Thread(target=self._send, name="mlflow", daemon=True)
        self._thread.start()

    @override
    def write(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        with self._lock:
            self._pending += _metrics({"epoch": epoch, **figures}, step)
        self._wake.set()

    @override
    def rewind(self, step: int) -> None:
        """Do nothing: MLflow cannot drop points, and shows the new ones beside the old."""

    @override
    def close(self) -> None:
        """Send what is left, and how the run ended: whether an exception is being handled."""
        error = sys.exc_info()[1]
        error = None if error is self._around else error
        # The thread gets some time to send the rest; then this one takes over.
        self._ending.set()
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)
        try:
            if self._thread.is_alive():
                raise TimeoutError(f"no answer for {CLOSE_SECONDS:.0f} seconds")
            self._flush()
            self._finish(error)
        except Exception as problem:  # whatever it is, the run itself succeeded
            self._say(f"MLflow: the end of the run could not be sent ({_first_line(problem)})")

    def _send(self) -> None:
        while not self._ending.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                self._flush()
            except Exception as problem:  # training continues, whatever happens to its records
                if not self._complained:
                    self._complained = True
                    self._say(
                        f"MLflow: {self._uri} does not take the figures "
                        f"({_first_line(problem)}); training continues, they are sent later"
                    )
                self._ending.wait(RETRY_SECONDS)
                self._wake.set()

    def _flush(self) -> None:
        run = self._run or self._begin()
        while True:
            with self._lock:
                some = self._pending[:MAX_METRICS]
            if not some:
                return
            # They stay in the queue until the server has them.
            self._client.log_batch(run, metrics=some)
            with self._lock:
                del self._pending[: len(some)]

    def _begin(self) -> str:
        """Create the run in MLflow, or find the one that this run folder has already."""
        # The folder remembers its run in MLflow, and on which server that is.
        note = self._folder / EVENTS / "mlflow.json"
        try:
            earlier = json.loads(note.read_text(encoding="utf-8"))
            run = str(earlier["run"]) if earlier["uri"] == self._uri else None
        except (OSError, ValueError, KeyError, TypeError):
            run = None
        if run is not None:
            self._client.update_run(run, status="RUNNING")
        else:
            run = self._new_run()
            if note.parent.is_dir():
                atomic_text(note, json.dumps({"uri": self._uri, "run": run}) + "\n")
        self._run = run
        self._say(f"MLflow: run {run} in experiment {self._recipe.track.experiment}, {self._uri}")
        return run

    def _new_run(self) -> str:
        from mlflow.entities import Param

        name = self._recipe.track.name or self._recipe.output
        machine = environment(choose_device(self._recipe.train.device))
        tags = {f"pretune.{key}": value for key, value in machine.items()}
        made = self._client.create_run(self._experiment, tags=tags, run_name=name)
        run = str(made.info.run_id)
        params = [Param(key, text[:MAX_TEXT]) for key, text in flat(self._recipe).items()]
        for start in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run, params=params[start : start + MAX_PARAMS])
        self._client.log_text(run, self._recipe.to_yaml(), RECIPE)
        return run

    def _finish(self, error: BaseException | None) -> None:
        run = self._run or self._begin()
        status = "FINISHED"
        if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
            status = "KILLED"
        elif error is not None:
            status = "FAILED"
            self._client.set_tag(run, "pretune.error", _first_line(error))
        else:
            self._outcome(run)
        self._client.set_terminated(run, status)

    def _outcome(self, run: str) -> None:
        """Send the figures of the best model and of the whole run."""
        text = (self._folder / RESULT).read_text(encoding="utf-8")
        result = json.loads(text)
        figures = {
            f"best/{name}": value for name, value in result["metrics"].items() if value is not None
        }
        for name in ("best_step", "steps", "examples", "tokens", "seconds", "peak_memory_mb"):
            if result.get(name) is not None:
                figures[f"run/{name}"] = result[name]
        best = result.get("best_step")
        step = int(result["steps"] if best is None else best)
        self._client.log_batch(run, metrics=_metrics(figures, step))
        self._client.log_text(run, text, RESULT)
        if (sheet := self._folder / SAMPLES).is_file():
            self._client.log_text(run, sheet.read_text(encoding="utf-8"), SAMPLES)


def _metrics(figures: Mapping[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(_NO_NAME.sub("_", name), value, now, step) for name, value in figures.items()]


def _connect(uri: str, experiment: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is created if there is none."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise RunError(
            f"track.mlflow needs MLflow ({error})", "Install it with: pip install 'pretune[track]'"
        ) from None
    try:
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(experiment)
        if known is None:
            return client, str(client.create_experiment(experiment))
    except Exception as error:  # MLflow, its HTTP client and its database each have their own
        raise RunError(
            f"track.mlflow: {uri} cannot be used ({_first_line(error)})",
            "Start it (mlflow server --port 5000), correct the address, or go without: "
            "track.mlflow=null",
        ) from None
    if known.lifecycle_stage != "active":
        raise RunError(
            f"track.experiment: '{experiment}' was deleted in MLflow",
            "Restore it there, or choose another: track.experiment=NAME",
        )
    return client, str(known.experiment_id)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).split("\n")[0][:MAX_TEXT]
