"""The application: every protocol's paths behind one gate, every error in its protocol's words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from pretune.serving import (
    embeddings_api,
    health,
    hub_api,
    kserve_api,
    native,
    openai_api,
    openapi,
)
from pretune.serving.api_keys import ApiKeys
from pretune.serving.metrics import PrometheusMetrics
from pretune.serving.middleware import Admission, Envelope, Traffic
from pretune.serving.options import ServeOptions
from pretune.serving.page import site
from pretune.serving.refusal import Refusal
from pretune.serving.service import Service

#: The protocols. Each module has `PATHS`, the beginnings of its paths, in which * is anything;
#: `routes(service, options)`; and `errors(refusal)`, the status and the JSON body that its clients
#: read.
PROTOCOLS: tuple[ModuleType, ...] = (
    native,
    openai_api,
    embeddings_api,
    hub_api,
    kserve_api,
)
#: Modules with nothing but routes: what they do has no clients of its own.
PAGES: tuple[ModuleType, ...] = (health, openapi, site)


def build_app(
    service: Service,
    options: ServeOptions,
    metrics: PrometheusMetrics,
    *,
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Starlette:
    """Make the application.

    Args:
        service: what answers.
        options: the settings and limits.
        metrics: the observer that `service` has too.
        say: told what whoever runs the server should know.

    Raises:
        RunError: the file with the keys cannot be used.
    """
    keys = None if options.api_key_file is None else ApiKeys(options.api_key_file, say)
    traffic = Traffic()
    routes = [route for module in (*PROTOCOLS, *PAGES) for route in module.routes(service, options)]
    log = _write_line if options.access_log else None
    middleware = [
        Middleware(Envelope, words=_words, metrics=metrics, log=log),
        Middleware(Admission, options=options, keys=keys, traffic=traffic),
    ]
    if options.cors:
        # Outermost: a page of others may read what an error says, too.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=[*options.cors],
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
        middleware.insert(0, cors)
    app = Starlette(
        routes=[*metrics.routes(), *routes],
        middleware=middleware,
        exception_handlers={HTTPException: _to_envelope},
    )
    # A path with a slash too many is unknown: a redirect would lose what was posted.
    app.router.redirect_slashes = False
    app.state.options, app.state.traffic = options, traffic
    return app


def _words(path: str, refusal: Refusal) -> tuple[int, dict[str, Any]]:
    """Word a refusal as the protocol of a path does: of the longest beginning; else in our own."""
    matches = [
        (len(start), module.errors)
        for module in PROTOCOLS
        for start in module.PATHS
        if fnmatchcase(path, start + "*")
    ]
    errors = max(matches, key=lambda match: match[0])[1] if matches else native.errors
    status, body = errors(refusal)
    return status, body


async def _to_envelope(request: Request, error: Exception) -> Response:
    """Let an error pass: where all errors are worded, these are too."""
    try:
        raise error
    finally:
        del error  # its traceback leads here: a circle


def _write_line(values: dict[str, Any]) -> None:
    """Write a line of the access log; a log that nobody reads any more stops no answer."""
    with suppress(Exception):
        print(json.dumps(values), flush=True)
