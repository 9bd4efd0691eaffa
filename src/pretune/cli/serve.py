"""`pretune serve`."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, to_stderr
from pretune.errors import PretuneError, RunError

#: The packages of the extra `serve`, and what they bring.
_EXTRA = ("starlette", "uvicorn", "prometheus_client", "anyio", "h11")
#: Folders within a run that a model may be named by: the run's own name tells more.
_WITHIN_RUNS = ("best", "last")
#: The panels of the options in the help.
_ACCESS, _SERVER, _REQUEST = "Who may ask", "Limits of the server", "Limits of a request"
_CLUSTER = "More than one machine"

#: What runs the service.
Engine = Literal["process", "ray"]


def _server(what: str) -> Any:
    """An option for a limit on all requests together."""
    return Option(min=1, help=what, rich_help_panel=_SERVER)


def _seconds(what: str) -> Any:
    """An option for a time that something may take."""
    return Option(min=0.001, help=f"Seconds {what}", rich_help_panel=_SERVER)


def _limit(what: str) -> Any:
    """An option for a limit on one request."""
    return Option(min=1, help=what, rich_help_panel=_REQUEST)


@command(
    "serve",
    "pretune serve runs/tickets",
    "pretune serve runs/tickets minilm --name qa=runs/squad --port 8080",
    "pretune serve runs/tickets --host 0.0.0.0 --api-key-file keys.txt --access-log",
    "pretune serve runs/tickets --engine ray --replicas 2",
    "pretune serve runs/tickets --watch   (a better model is taken as soon as training saves it)",
)
def serve(
    context: typer.Context,
    runs: Annotated[
        list[str] | None,
        Argument(
            metavar="RUN_OR_MODEL",
            help="Run folders, model folders, GGUF files, Hub ids, minilm or smollm2.",
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        Option(
            "--name", metavar="NAME=RUN", help="Serve a model by another name; may be repeated."
        ),
    ] = None,
    port: Annotated[int, Option(min=0, max=65535, help="0: a free one.")] = 8000,
    host: Annotated[
        str, Option(help="The address to listen on; 0.0.0.0: all addresses of this machine.")
    ] = "127.0.0.1",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    workers: Annotated[
        int, Option(min=1, help="Processes that compute; each holds all models.")
    ] = 1,
    max_batch_tokens: Annotated[
        int | None, Option(min=1, help="Tokens computed at a time. Default: what suits the device.")
    ] = None,
    watch: Annotated[
        bool, Option("--watch", help="Take a run's new best model as soon as it is saved.")
    ] = False,
    access_log: Annotated[
        bool,
        Option("--access-log", help="Print a line of JSON for each request, without its text."),
    ] = False,
    allow_pickle: options.AllowPickle = False,
    api_key_file: Annotated[
        Path | None,
        Option(
            help="Keys that clients show, one a line; read again when it changes.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        Option("--insecure", help="Serve other machines without keys.", rich_help_panel=_ACCESS),
    ] = False,
    cors: Annotated[
        list[str] | None,
        Option(
            metavar="ORIGIN",
            help="Let pages of this origin ask, e.g. https://example.org; may be repeated.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    max_queue: Annotated[int, _server("Requests that wait or are computed.")] = 512,
    max_connections: Annotated[int, _server("Open connections.")] = 1024,
    max_bodies: Annotated[int, _server("Bytes in the bodies of all requests under way.")] = 256
    << 20,
    timeout: Annotated[float, _seconds("that a request may wait and be computed.")] = 120.0,
    header_seconds: Annotated[
        float, _seconds("in which the head of a request has to arrive.")
    ] = 10.0,
    body_seconds: Annotated[
        float, _seconds("in which the body of a request has to arrive.")
    ] = 30.0,
    write_seconds: Annotated[
        float, _seconds("in which a client has to read some of its answer.")
    ] = 30.0,
    drain: Annotated[
        float,
        Option(
            min=0,
            help="Seconds that what is running may take after SIGTERM.",
            rich_help_panel=_SERVER,
        ),
    ] = 30.0,
    max_body: Annotated[int, _limit("Bytes in the body of a request.")] = 8 << 20,
    max_depth: Annotated[int, _limit("Lists and objects within each other in JSON.")] = 32,
    max_values: Annotated[int, _limit("Values in JSON.")] = 200_000,
    max_inputs: Annotated[int, _limit("Inputs of a request.")] = 2048,
    max_chars: Annotated[int, _limit("Characters in a text.")] = 200_000,
    max_request_tokens: Annotated[int, _limit("Tokens in all inputs of a request.")] = 500_000,
    max_top_k: Annotated[int, _limit("Answers returned for each input.")] = 1000,
    max_new_tokens: Annotated[int, _limit("Tokens in a continuation.")] = 4096,
    max_samples: Annotated[int, _limit("Continuations of a prompt (n).")] = 16,
    max_choices: Annotated[int, _limit("Continuations of all prompts of a request.")] = 64,
    max_stops: Annotated[int, _limit("Texts that end a continuation.")] = 16,
    max_stop_chars: Annotated[int, _limit("Characters in such a text.")] = 256,
    max_logprobs: Annotated[int, _limit("Most probable tokens returned for each token.")] = 20,
    engine: Annotated[
        Engine,
        Option(
            help="process: here. ray: on a Ray cluster, the one of RAY_ADDRESS or one that is "
            "started here.",
            rich_help_panel=_CLUSTER,
        ),
    ] = "process",
    replicas: Annotated[
        str | None,
        Option(
            metavar="N|auto",
            help="Copies of the service, each with its own workers; auto: as many as are needed. "
            "Default: 1.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
    ray: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE",
            help="An option of Ray Serve's deployment, e.g. autoscaling_config.max_replicas=4 or "
            "ray_actor_options.num_gpus=1; may be repeated.",
            rich_help_panel=_CLUSTER,
        ),
    ] = None,
) -> None:
    """Serve models over HTTP, with a page to try them.

    Speaks the protocols of OpenAI, Text Embeddings Inference, Hugging Face and KServe, and for
    every task its own: POST /v1/predict gives what `pretune predict --json` prints. Other machines
    are answered only with keys. Ctrl-C or SIGTERM finishes what is running; a second one ends
    at once.
    """
    models = named_models(runs or [], names or [])
    on_ray = engine == "ray"
    if not on_ray and (replicas is not None or ray):
        option = "--ray" if replicas is None else "--replicas"
        raise PretuneError(f"{option} is about a Ray cluster", "Add --engine ray, or leave it out.")
    _check_installed()
    from pretune.serving.options import ServeOptions
    from pretune.text.terminal import in_line

    notes = to_stderr()
    # Each setting of the service is an option of the same name.
    settings: dict[str, Any] = {
        item.name: context.params.get(item.name) for item in fields(ServeOptions)
    }
    chosen = ServeOptions(**{**settings, "models": models, "cors": tuple(cors or ())})

    def ready(line: str) -> None:
        # With a log, standard output has nothing else.
        print(in_line(line), file=sys.stderr if access_log else sys.stdout, flush=True)

    if on_ray:
        from pretune.serving.ray_engine import serve_on_ray

        wanted = {**options.option_pairs(ray), **({"num_replicas": replicas} if replicas else {})}
        serve_on_ray(chosen, wanted, ready=ready, say=notes.say)
        return
    from pretune.serving.server import serve as run_server

    run_server(chosen, ready=ready, say=notes.say)


def named_models(runs: list[str], names: list[str]) -> tuple[tuple[str, str], ...]:
    """Return name and source of each model; a name not given is that of the folder.

    Raises:
        PretuneError: there is none, or two have the same name.
    """
    models = [(_name_of(run), run) for run in runs]
    for pair in names:
        name, equals, run = pair.partition("=")
        if not (equals and name and run):
            raise PretuneError(f"--name '{pair}': expected NAME=RUN", "For example qa=runs/squad.")
        models.append((name, run))
    if not models:
        raise PretuneError(
            "nothing to serve", "Name a run, a model folder or a Hub id: pretune serve runs/train"
        )
    for name, run in models:
        if not name.isprintable() or " " in name or len(name) > 200:
            raise PretuneError(f"'{name}' is no name for a model", f"Use --name NAME={run}")
        if [name for name, _ in models].count(name) > 1:
            raise PretuneError(f"two models are called '{name}'", "Use --name NAME=RUN for one.")
    return tuple(models)


def _name_of(run: str) -> str:
    """A model's name: of a folder its last part, else the whole, such as a Hub id."""
    path = Path(run)
    if not path.exists():
        return run
    path = path.resolve()
    return path.parent.name if path.name in _WITHIN_RUNS else path.name


def _check_installed() -> None:
    """Raise a RunError if a package of the extra `serve` is missing."""
    import importlib

    for package in _EXTRA:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise RunError(
                f"serving needs {package} ({error})",
                "Install it with: pip install 'pretune[serve]'",
            ) from None
