"""The paths of the page: `/`, and its files below `/page/`."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pretune.serving.middleware import SECURITY_HEADERS
from pretune.serving.options import ServeOptions
from pretune.serving.service import Service

#: What a browser is told that a file is, by how its name ends.
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Beyond what every answer forbids: no script of the page can turn a text into elements.
_POLICY = (
    SECURITY_HEADERS["Content-Security-Policy"]
    + "; require-trusted-types-for 'script'; trusted-types 'none'"
)
_START = "index.html"


def routes(service: Service, options: ServeOptions) -> list[Route]:
    """The paths of the page; it asks for all else as any other client does."""
    pages = _read()

    async def start(request: Request) -> Response:
        return _answer(request, *pages[_START])

    async def file(request: Request) -> Response:
        page = pages.get(request.path_params["name"])
        if page is None:
            raise HTTPException(404)
        return _answer(request, *page)

    return [
        Route("/", start, methods=["GET"]),
        Route("/page/{name}", file, methods=["GET"]),
    ]


def _read() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return the files by name, each with the headers that it is sent with."""
    pages = {}
    for file in files("pretune.serving.page").iterdir():
        media = _TYPES.get("." + file.name.rpartition(".")[2])
        if media is None:
            continue
        content = file.read_bytes()
        headers = {
            "Content-Type": media,
            # Kept by browsers, but asked for anew: a newer pretune may serve here tomorrow.
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"',
            "Content-Security-Policy": _POLICY,
        }
        pages[file.name] = content, headers
    return pages


def _answer(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """Send a file, unless the browser has it already."""
    known = request.headers.get("if-none-match", "")
    if headers["ETag"] in [tag.strip().removeprefix("W/") for tag in known.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers)
