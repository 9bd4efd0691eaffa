"""`pretune serve --engine ray`: the same service, as replicas of a Ray that is started here."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import OpenAI
from typer.testing import CliRunner

from pretune.bundle.bundle import save
from pretune.cli.app import app as commands
from pretune.errors import CheckpointError, RunError
from pretune.serving import ray_engine
from pretune.serving.ray_engine import serve_on_ray
from tests.serving.live_server import Reply, reply_of, some_options, wait_until
from tests.serving.served_process import Process, alive, children_of
from tests.tasks.every_task import CASES

TEXTS = ["the good film", "bad 好 film?", "x"]
KEY = "the-key-of-this-server"


def asked(port: int, method: str, path: str, body: Any = None, key: str = KEY) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    content = None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, content, headers)
        return reply_of(connection.getresponse())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEY + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def process(
    classifier: Path, keys: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    writer = tmp_path_factory.mktemp("lm")
    save(CASES["instruct"].bundle(tiny_folder, tmp_path_factory.mktemp("made")), writer)
    arguments = (
        *(classifier, "--name", f"chat={writer}", "--api-key-file", keys, "--max-inputs", 5),
        *("--engine", "ray", "--replicas", 2, "--ray", "ray_actor_options.num_cpus=0.5"),
        *("--ray", "health_check_period_s=2", "--device", "cpu"),
    )
    # Ray gives up by clocks of its own where other tests take all cores.
    for _ in range(3):
        with suppress(AssertionError):
            served = Process(*arguments)
            break
    else:
        served = Process(*arguments)
    yield served
    served.kill()


@pytest.mark.slow
@pytest.mark.alone
class TestServed:
    def test_answers_are_those_of_the_command(self, process: Process, classifier: Path) -> None:
        done = CliRunner().invoke(commands, ["predict", str(classifier), *TEXTS, "--json"])
        printed = [json.loads(line) for line in done.stdout.splitlines()]
        reply = asked(process.port, "POST", "/v1/predict", {"inputs": TEXTS})
        assert reply.status == 200, reply.body
        for answer, wanted in zip(reply.json["answers"], printed, strict=True):
            assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
            assert answer["label"] == wanted["label"]

    def test_the_line_names_all_models(self, process: Process) -> None:
        assert process.line.startswith("serving 2 models: http://127.0.0.1:")
        assert process.line.count("\n") == 1

    def test_limits_and_keys_are_those_of_one_process(self, process: Process) -> None:
        reply = asked(process.port, "POST", "/v1/predict", {"inputs": ["x"] * 6})
        assert (reply.status, reply.json["error"]["limit"]) == (413, "max_inputs")
        assert asked(process.port, "POST", "/v1/predict", {"inputs": ["x"]}, "no").status == 401
        # What is open stays open, with the headers of the page.
        page = asked(process.port, "GET", "/", key="no")
        assert page.status == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert asked(process.port, "GET", "/readyz", key="no").json["models"] == {
            "tiny": 1,
            "chat": 1,
        }

    def test_streams_come_as_they_are_written(self, process: Process) -> None:
        client = OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key=KEY)
        stream = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "good film?"}],
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert len(chunks) >= 3
        assert chunks[-1].usage is not None

    def test_there_are_as_many_replicas_as_asked(self, process: Process) -> None:
        started = set()

        def both() -> bool:
            text = asked(process.port, "GET", "/metrics").body.decode()
            started.add(re.findall(r"^process_start_time_seconds (\S+)$", text, re.M)[0])
            return len(started) == 2

        wait_until(both, 60)

    def test_who_hangs_up_frees_the_place(self, process: Process) -> None:
        client = OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key=KEY)
        stream = client.completions.create(
            model="chat", prompt="the", max_tokens=4000, temperature=0, stream=True
        )
        next(iter(stream))
        stream.close()

        def empty() -> bool:
            text = asked(process.port, "GET", "/metrics").body.decode()
            return "pretune_queue_length 0.0" in text

        wait_until(empty, 60)

    def test_the_end(self, process: Process) -> None:
        """What is running is finished; nothing is left."""
        body = {"model": "chat", "prompt": "the", "max_tokens": 300, "temperature": 0}
        replies: list[Reply] = []
        running = threading.Thread(
            target=lambda: replies.append(asked(process.port, "POST", "/v1/completions", body))
        )
        running.start()
        children = children_of(process.process.pid)
        assert children
        code, said = process.end()
        running.join()
        assert (code, said) == (0, "")
        assert replies[0].status in (200, 503)
        wait_until(lambda: not any(map(alive, children)), 60)


@pytest.mark.slow
@pytest.mark.alone
def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    done = CliRunner().invoke(
        commands, ["serve", str(tmp_path), "--engine", "ray", "--port", "0", "--device", "cpu"]
    )
    assert done.exit_code == 2, done.output
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


class Autoscaling:
    model_fields = {"min_replicas": None, "max_replicas": None}  # noqa: RUF012


def a_ray() -> Any:
    """As much of Ray Serve as options are compared with."""

    def deployment(
        _func_or_class: object = None,
        name: object = None,
        version: object = None,
        num_replicas: object = None,
        max_ongoing_requests: object = None,
        autoscaling_config: object = None,
        ray_actor_options: object = None,
    ) -> None: ...

    return SimpleNamespace(
        deployment=deployment, config=SimpleNamespace(AutoscalingConfig=Autoscaling)
    )


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    options = some_options(max_queue=7, drain=3.0, workers=2)
    return ray_engine._deployment(a_ray(), options, given)


def test_options_are_passed_through() -> None:
    plain = options_of({})
    # Requests wait in the replica, which refuses those that are too many.
    assert plain["max_ongoing_requests"] > 7
    assert plain["graceful_shutdown_timeout_s"] == 3.0
    assert plain["ray_actor_options"] == {"num_cpus": 2}
    given = {
        "num_replicas": "auto",
        "autoscaling_config.max_replicas": 4,
        "autoscaling_config.min_replicas": 1,
        "ray_actor_options.num_gpus": 1,
        "max_ongoing_requests": 5,
    }
    assert options_of(given) == {
        **plain,
        "num_replicas": "auto",
        "autoscaling_config": {"max_replicas": 4, "min_replicas": 1},
        "ray_actor_options": {"num_cpus": 2, "num_gpus": 1},
        "max_ongoing_requests": 5,
    }
    assert options_of({"num_replicas": "3"})["num_replicas"] == 3


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("num_replica", "num_replicas"),
        ("version", "Ray Serve has no such option"),
        ("autoscaling_config.max_replica", "max_replicas"),
    ],
)
def test_options_that_there_are_not(key: str, said: str) -> None:
    with pytest.raises(RunError, match=f"--ray {key}") as told:
        options_of({key: 1})
    assert said in str(told.value)


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "ray", missing)
    with pytest.raises(RunError, match="Ray Serve is not installed") as told:
        serve_on_ray(some_options(), {}, ready=print, say=print)
    assert "pretune[cluster,serve]" in str(told.value)


@pytest.mark.parametrize("address", ["", "no.example:1"])
def test_a_cluster_that_is_not_there(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: Any) -> None:
        raise Exception("timed out\nmore")

    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match="timed out") as told:
        ray_engine._start(SimpleNamespace(init=init))  # type: ignore[arg-type]
    assert address in told.value.message


def test_a_replicas_reason_is_told_as_it_was_written() -> None:
    reason = json.dumps(["runs/x: no model [here]", "Name a run."])
    told = ray_engine._why(
        f"Deploying failed:\n  File x\nRuntimeError: {ray_engine._REFUSED}{reason}\n"
    )
    assert isinstance(told, CheckpointError)
    assert (told.message, told.hint) == ("runs/x: no model [here]", "Name a run.")
    assert "out of room" in ray_engine._why("\n out of room\nmore").message
