"""`pretune serve --engine ray`: the same application, as a deployment of Ray Serve.

Ray starts replicas, spreads requests over them, scales and replaces them. Each replica is a service
as in one process, with workers, batches, limits and keys of its own.
"""

from __future__ import annotations

import inspect
import json
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from pretune.errors import CheckpointError, PretuneError, RunError, did_you_mean
from pretune.serving.app import build_app
from pretune.serving.jobs import Served
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.options import ServeOptions
from pretune.serving.server import check_address, listening_socket, ready_line
from pretune.serving.service import Service

#: The application's name on the cluster.
NAME = "pretune"
#: What the deployment runs, and what it answers; the command decides about these.
_OURS = ("name", "version")
#: Stands before the sentences with which a replica refuses to start, in Ray's report of it.
_REFUSED = "pretune cannot serve: "
#: Seconds that Ray waits between two looks whether a replica that ends still has work.
_LOOK_EVERY = 0.5

#: The application of the replica in this process.
_applications: list[ASGIApp] = []


class RayFront:
    """Passes what Ray calls on to the application of the replica in this process."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        await _applications[-1](scope, receive, send)


class RayReplica:
    """A service in a process of Ray's.

    Args:
        options: of the service; files are looked for on the machine of the replica.
    """

    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc] # Ray awaits it
        metrics = PrometheusMetrics()
        self._service = Service(options, metrics)
        try:
            # The file with the keys is read before any model is.
            app = build_app(self._service, options, metrics)
            await self._service.start()
        except PretuneError as error:
            raise RuntimeError(_REFUSED + json.dumps([error.message, error.hint])) from None
        _applications.append(app)

    def told(self) -> tuple[list[Served], tuple[str, ...]]:
        """Return the models that are served, and what people are told about them."""
        return self._service.models(), self._service.notes

    def check_health(self) -> None:
        """Raise an error where no worker can answer: Ray asks, and replaces the replica."""
        if not self._service.ready:
            raise RuntimeError("no worker is ready")

    async def __del__(self) -> None:
        """End the workers; Ray calls this when no request is under way any more."""
        await self._service.close(0)


def serve_on_ray(
    options: ServeOptions,
    deployment: Mapping[str, Any],
    *,
    ready: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Serve models on a Ray cluster until SIGTERM or SIGINT: that of `RAY_ADDRESS`, or one here.

    A second signal ends everything at once.

    Args:
        options: what to serve, and how.
        deployment: options of Ray Serve's deployment, whose names may have dots; they take the
            place of ours.
        ready: told one line when requests are answered.
        say: told what whoever runs the server should know.

    Raises:
        RunError: Ray is not installed, the address cannot be used, or Ray refuses an option.
        PretuneError: a model cannot be loaded.
    """
    ray, serve = _installed()
    check_address(options, say)
    wanted = _deployment(serve, options, deployment)
    # That the address is taken is told before anything is started.
    with listening_socket(options) as listener:
        port: int = listener.getsockname()[1]
    with _stopped_by_signals() as listen:
        started_here = not ray.is_initialized()
        if started_here:
            _start(ray)
            # Ray has taken the signals for itself.
            listen()
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        try:
            models, notes = _deployed(serve, options, wanted, port)
            for text in notes:
                say(text)
            ready(ready_line(options, port, models))
            threading.Event().wait()
        finally:
            # Replicas finish what is running, for as long as `drain` allows. What Ray's own actors
            # say when they are ended (that they are dead) hides no error of ours.
            with suppress(Exception):
                serve.delete(NAME)
            if started_here:
                with suppress(Exception):
                    serve.shutdown()
                ray.shutdown()


def _installed() -> tuple[ModuleType, ModuleType]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise RunError(
            f"Ray Serve is not installed ({error})",
            "Install it with: pip install 'pretune[cluster,serve]'",
        ) from None
    return ray, serve


def _start(ray: ModuleType) -> None:
    """Join the cluster of `RAY_ADDRESS`, or start one here."""
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no kind of its own for this
        where = os.environ.get("RAY_ADDRESS")
        raise RunError(
            f"Ray cannot be {'reached at ' + where if where else 'started'}: {_first_line(error)}",
            "Check RAY_ADDRESS." if where else "Try it again when the machine has less to do.",
        ) from None


def _deployment(
    serve: ModuleType, options: ServeOptions, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of the deployment: ours, and in their place those that are given.

    Raises:
        RunError: a name is none of Ray's.
    """
    wanted: dict[str, Any] = {
        # What waits, waits in the replica, which refuses more than `max_queue` by itself.
        "max_ongoing_requests": 2 * options.max_queue,
        "graceful_shutdown_timeout_s": options.drain,
        "graceful_shutdown_wait_loop_s": _LOOK_EVERY,
        # A model that cannot be loaded cannot be loaded the second time either.
        "max_constructor_retry_count": 1,
        "ray_actor_options": {"num_cpus": options.workers},
    }
    known = [*inspect.signature(serve.deployment).parameters][1:]
    known = [name for name in known if name not in _OURS]
    fields = [*serve.config.AutoscalingConfig.model_fields]
    for key, value in given.items():
        name, *rest = key.split(".")
        if name not in known:
            raise RunError(f"--ray {key}: Ray Serve has no such option", did_you_mean(name, known))
        # Ray passes over keys that it does not know.
        if name == "autoscaling_config" and rest and rest[0] not in fields:
            raise RunError(
                f"--ray {key}: Ray Serve has no such option", did_you_mean(rest[0], fields)
            )
        place = wanted
        for part in key.split(".")[:-1]:
            inner = place.get(part)
            place[part] = place = dict(inner) if isinstance(inner, Mapping) else {}
        whole = isinstance(value, str) and value.isdecimal()
        place[key.rpartition(".")[2]] = int(value) if whole else value
    return wanted


def _deployed(
    serve: ModuleType, options: ServeOptions, wanted: Mapping[str, Any], port: int
) -> tuple[list[Served], tuple[str, ...]]:
    """Start the deployment, and return what its first replica tells of its models."""
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": options.host or "0.0.0.0", "port": port},  # noqa: S104 - as asked
    )
    replica = serve.ingress(RayFront())(RayReplica)
    try:
        made = serve.deployment(**wanted)(replica).options(name=NAME)
        handle = serve.run(made.bind(options), name=NAME, route_prefix="/")
    except (ValueError, TypeError) as error:
        raise RunError(f"--ray: {_first_line(error)}", "See Ray Serve's options.") from None
    except RuntimeError as error:
        raise _why(f"{error}\n{_told_by_replicas(serve)}") from None
    told: tuple[list[Served], tuple[str, ...]] = handle.told.remote().result()
    return told


def _told_by_replicas(serve: ModuleType) -> str:
    """Return what Ray knows of replicas that did not start."""
    with suppress(Exception):
        deployments = serve.status().applications[NAME].deployments
        return "\n".join(str(own.message) for own in deployments.values())
    return ""


def _why(report: str) -> PretuneError:
    """Return the error that a replica did not start with."""
    refused = re.search(re.escape(_REFUSED) + r"(\[.*\])", report)
    if refused is not None:
        with suppress(ValueError):
            message, hint = json.loads(refused[1])
            return CheckpointError(message, hint)
    return RunError(f"Ray cannot start the service: {_first_line(report)}", "See Ray's logs.")


def _first_line(text: object) -> str:
    return next((line for line in str(text).strip().splitlines() if line.strip()), "no reason")


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Leave the context at SIGTERM or SIGINT; the second one ends the process.

    What the context gives takes the signals again, after somebody else took them.
    """
    began = threading.Event()

    def stopped(number: int, frame: object) -> None:
        if began.is_set():
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(128 + number)
        began.set()
        # Whatever waits now, for Ray or for nothing, waits no longer.
        raise KeyboardInterrupt(number)

    def listen() -> None:
        for number in before:
            signal.signal(number, stopped)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    listen()
    try:
        yield listen
    except KeyboardInterrupt:
        if not began.is_set():
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
