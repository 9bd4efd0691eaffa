"""MLflow, with a server of its own: a process with an SQLite store, as anybody would start it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pretune.errors import RecipeError, RunError
from pretune.recipe.recipe import Recipe
from pretune.training import run as run_module
from pretune.training import tracking as track_module
from pretune.training.run import train_recipe
from pretune.training.tracking import Mlflow, flat

Make = Callable[..., Recipe]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Server:
    folder: Path
    port: int
    process: Any = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **quiet},
                start_new_session=True,  # it has children, which end with it
            )
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)  # noqa: S310 - ours
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def ask(self, what: str, **values: Any) -> Any:
        """By the REST interface, without MLflow's client."""
        request = urllib.request.Request(  # noqa: S310 - ours
            f"{self.uri}/api/2.0/mlflow/{what}",
            json.dumps(values).encode() if values.pop("post", True) else None,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - ours
            return json.load(answer)

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        found = self.ask("experiments/search", max_results=100)["experiments"]
        (number,) = (e["experiment_id"] for e in found if e["name"] == experiment)
        runs = self.ask("runs/search", experiment_ids=[number]).get("runs", [])
        return [
            {
                "id": run["info"]["run_id"],
                "name": run["info"]["run_name"],
                "status": run["info"]["status"],
                "ended": "end_time" in run["info"],
                **{
                    kind: {item["key"]: item["value"] for item in run["data"].get(kind, [])}
                    for kind in ("metrics", "params", "tags")
                },
            }
            for run in runs
        ]

    def history(self, run: str, metric: str) -> dict[int, float]:
        address = f"metrics/get-history?run_id={run}&metric_key={metric}"
        found = self.ask(address, post=False)["metrics"]
        return {int(one.get("step", 0)): one["value"] for one in found}

    def artifact(self, run: str, name: str) -> str:
        (file,) = (self.folder / "artifacts").rglob(f"{run}/artifacts/{name}")
        return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(tmp_path_factory.mktemp("mlflow"), free_port())
    one.start()
    yield one
    one.stop()


@pytest.mark.slow
class TestServer:
    def test_has_all_of_a_run(self, server: Server, toy_recipe: Make) -> None:
        recipe = toy_recipe(track__mlflow=server.uri, track__experiment="all", train__log_every=2)
        result = train_recipe(recipe, quiet=True)
        (run,) = server.runs("all")
        assert (run["status"], run["ended"], run["name"]) == ("FINISHED", True, recipe.output)
        assert run["params"]["train.learning_rate"] == "0.001"
        assert run["params"]["task.name"] == "classify"
        assert run["params"]["model.from"] == recipe.model.source
        assert run["tags"]["pretune.torch"] == result.environment["torch"]
        lines = (Path(recipe.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        for name in ("train/loss", "train/learning_rate", "validation/accuracy", "validation/loss"):
            kept = {entry["step"]: entry[name] for entry in entries if name in entry}
            assert server.history(run["id"], name) == kept
            assert kept
        assert run["metrics"]["best/accuracy"] == result.metrics["accuracy"]
        assert run["metrics"]["run/steps"] == result.steps
        assert server.artifact(run["id"], "recipe.yaml") == recipe.to_yaml()

    def test_knows_a_run_that_failed(self, server: Server, toy_recipe: Make) -> None:
        recipe = toy_recipe(
            track__mlflow=server.uri, track__experiment="failed", train__learning_rate=1e30
        )
        with pytest.raises(RunError) as caught:
            train_recipe(recipe, quiet=True)
        (run,) = server.runs("failed")
        assert run["status"] == "FAILED"
        assert run["tags"]["pretune.error"] == caught.value.message.split("\n")[0]

    def test_knows_a_run_that_was_stopped(self, server: Server, toy_recipe: Make) -> None:
        recipe = toy_recipe(
            track__mlflow=server.uri, track__experiment="killed", track__name="mine"
        )
        sink = Mlflow(recipe, server.uri, lambda text: None)
        sink.write(1, 0.1, {"train/loss": 1.0})
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sink.close()
        (run,) = server.runs("killed")
        assert (run["status"], run["name"]) == ("KILLED", "mine")

    def test_an_older_exception_is_not_the_runs(self, server: Server, toy_recipe: Make) -> None:
        recipe = toy_recipe(track__mlflow=server.uri, track__experiment="nested")
        try:
            raise ValueError
        except ValueError:
            train_recipe(recipe, quiet=True)
        (run,) = server.runs("nested")
        assert run["status"] == "FINISHED"

    def test_a_run_that_goes_on_is_the_same_run(self, server: Server, toy_recipe: Make) -> None:
        recipe = toy_recipe(track__mlflow=server.uri, track__experiment="on")
        (Path(recipe.output) / "events").mkdir(parents=True)
        for step in (1, 2):
            sink = Mlflow(recipe, server.uri, lambda text: None)
            sink.write(step, 0.1, {"train/loss": step / 2})
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                sink.close()
        (run,) = server.runs("on")
        assert server.history(run["id"], "train/loss") == {1: 0.5, 2: 1.0}

    def test_nothing_is_printed_on_standard_output(
        self, server: Server, toy_recipe: Make, tmp_path: Path
    ) -> None:
        file = tmp_path / "recipe.yaml"
        file.write_text(toy_recipe(track__mlflow=server.uri).to_yaml(), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pretune", "train", str(file), "--json"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["steps"] == 12
        assert f"in experiment pretune, {server.uri}" in done.stderr


@pytest.mark.slow
def test_a_server_that_goes_away_is_told_of_once_and_gets_it_all_later(
    toy_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track_module, "RETRY_SECONDS", 0.2)
    server = Server(tmp_path, free_port())
    said: list[str] = []
    try:
        server.start()
        recipe = toy_recipe(track__mlflow=server.uri)
        sink = Mlflow(recipe, server.uri, said.append)
        sink.write(1, 0.1, {"train/loss": 1.0})
        wait_until(lambda: not sink._pending)
        server.stop()
        for step in (2, 3, 4):
            sink.write(step, 0.1, {"train/loss": float(step)})
            time.sleep(0.3)
        wait_until(lambda: any("does not take" in text for text in said))
        server.start()
        wait_until(lambda: not sink._pending)
        (run,) = server.runs("pretune")
        assert run["status"] == "RUNNING"
        assert server.history(run["id"], "train/loss") == {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}
        server.stop()
        sink.close()
    finally:
        server.stop()
    assert sum("does not take" in text for text in said) == 1
    assert "could not be sent" in said[-1]


def wait_until(what: Callable[[], bool]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.1)
    raise AssertionError("it does not happen")


class TestWithoutServer:
    def test_no_server_is_an_error_before_anything_is_written(self, toy_recipe: Make) -> None:
        recipe = toy_recipe(track__mlflow=f"http://127.0.0.1:{free_port()}")
        with pytest.raises(RunError, match=r"cannot be used .*\n.*track\.mlflow=null"):
            train_recipe(recipe, quiet=True)
        assert not Path(recipe.output).exists()

    def test_without_mlflow_the_way_out_is_said(
        self, toy_recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
        recipe = toy_recipe(track__mlflow="http://127.0.0.1:1")
        with pytest.raises(RunError, match=r"pip install 'pretune\[track\]'"):
            train_recipe(recipe, quiet=True)

    def test_nothing_is_tracked_unless_asked(
        self, toy_recipe: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[object] = []
        monkeypatch.setattr(run_module, "Mlflow", lambda *given: opened.append(given))
        train_recipe(toy_recipe(train__max_steps=1), quiet=True)
        assert opened == []

    def test_a_password_does_not_belong_in_a_recipe(self, toy_recipe: Make) -> None:
        with pytest.raises(RecipeError, match="MLFLOW_TRACKING_PASSWORD"):
            toy_recipe(track__mlflow="https://me:secret@example.org")


def test_a_flat_recipe_has_every_value(toy_recipe: Make) -> None:
    recipe = toy_recipe(train__freeze={"layers": 1}, data__columns={"text": "body"})
    found = flat(recipe)
    assert found["model.from"] == recipe.model.source
    assert found["train.freeze"] == "{layers: 1}"
    assert found["data.columns"] == "{text: body}"
    assert found["train.guard.action"] == "stop"
    assert found["train.max_steps"] == "null"
    again = Recipe.load(recipe.data.train, [f"{key}={text}" for key, text in found.items()])
    assert again == recipe
