"""`pretune serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from pretune.cli import options
from pretune.cli.app import command, to_stderr
from pretune.errors import PretuneError, RunError

#: The packages of the extra `serve`, and what they bring.
_EXTRA = ("starlette", "uvicorn", "prometheus_client", "anyio", "h11")
#: Folders within a run that a model may be named by: the run's own name tells more.
_WITHIN_RUNS = ("best", "last")


@command(
    "serve",
    "pretune serve runs/tickets",
    "pretune serve runs/tickets minilm --name qa=runs/squad --port 8080",
    "pretune serve runs/tickets --host 0.0.0.0 --api-key-file keys.txt --access-log",
    "pretune serve runs/tickets --watch   (a better model is taken as soon as training saves it)",
)
def serve(
    runs: Annotated[
        list[str] | None,
        Argument(metavar="RUN_OR_MODEL...", help="Run folders, model folders, Hub ids, or minilm."),
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
    api_key_file: Annotated[
        Path | None, Option(help="Keys that clients show, one a line; read again when it changes.")
    ] = None,
    insecure: Annotated[
        bool, Option("--insecure", help="Serve other machines without keys.")
    ] = False,
    cors: Annotated[
        list[str] | None,
        Option(metavar="ORIGIN", help="Let pages of this origin ask, e.g. https://example.org."),
    ] = None,
    max_batch_tokens: Annotated[
        int | None, Option(min=1, help="Tokens computed at a time. Default: what suits the device.")
    ] = None,
    max_queue: Annotated[
        int, Option(min=1, help="Requests that wait or are computed; further ones get 429.")
    ] = 512,
    max_body: Annotated[int, Option(min=1, help="Bytes in the body of a request.")] = 8 << 20,
    timeout: Annotated[
        float, Option(min=0.001, help="Seconds that a request may wait and be computed.")
    ] = 120.0,
    drain: Annotated[
        float, Option(min=0, help="Seconds that what is running may take after SIGTERM.")
    ] = 30.0,
    watch: Annotated[
        bool, Option("--watch", help="Take a run's new best model as soon as it is saved.")
    ] = False,
    access_log: Annotated[
        bool,
        Option("--access-log", help="Print a line of JSON for each request, without its text."),
    ] = False,
    allow_pickle: options.AllowPickle = False,
) -> None:
    """Serve models over HTTP, with a page to try them.

    Speaks the protocols of OpenAI, Text Embeddings Inference, Hugging Face and KServe, and for
    every task its own: POST /v1/predict gives what `pretune predict --json` prints. Other machines
    are answered only with keys. Ctrl-C or SIGTERM finishes what is running; a second one ends
    at once.
    """
    models = named_models(runs or [], names or [])
    _check_installed()
    from pretune.serving.options import ServeOptions
    from pretune.serving.server import serve as run_server
    from pretune.text.terminal import in_line

    notes = to_stderr()
    chosen = ServeOptions(
        models,
        host=host,
        port=port,
        device=device,
        precision=precision,
        workers=workers,
        allow_pickle=allow_pickle,
        watch=watch,
        api_key_file=api_key_file,
        insecure=insecure,
        cors=tuple(cors or ()),
        access_log=access_log,
        drain=drain,
        timeout=timeout,
        max_queue=max_queue,
        max_body=max_body,
        max_batch_tokens=max_batch_tokens,
    )

    def ready(line: str) -> None:
        # With a log, standard output has nothing else.
        print(in_line(line), file=sys.stderr if access_log else sys.stdout, flush=True)

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
