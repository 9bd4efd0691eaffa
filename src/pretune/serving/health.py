"""`/healthz` and `/readyz`, as Kubernetes asks them."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pretune.serving.options import ServeOptions
from pretune.serving.service import Service


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """The two paths."""

    async def healthz(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> JSONResponse:
        ready = service.ready and not request.app.state.traffic.draining
        body: dict[str, Any] = {"status": "ready" if ready else "not ready"}
        body["models"] = {served.name: served.version for served in service.models()}
        return JSONResponse(body, 200 if ready else 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
