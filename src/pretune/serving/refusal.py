"""The answer to a request that is not done: its status, its kind, and a sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - often the client's mistake, and no error of ours
    """A request is not done; each protocol writes this in the shape that its clients read.

    Attributes:
        status: of HTTP: 400 not to be read, 401 no key, 403 from a page of others, 404 unknown path
            or model, 413 more than a limit allows, 415 another content type, 422 a value that makes
            no sense, 429 the queue is full, 500 our fault, 503 not now, 504 out of time.
        kind: what counts in `/metrics`, a word or two joined by underscores: `too_large`.
        message: a sentence that says what is wrong and what to do.
        limit: the name in `ServeOptions` of the limit that was passed, e.g. `max_body`.
        retry_after: seconds after which another try may succeed.
        param: the key of the request that is wrong, e.g. `messages[0].role`.
    """

    status: int
    kind: str
    message: str
    limit: str | None = None
    retry_after: int | None = None
    param: str | None = None

    def __str__(self) -> str:
        return self.message


def invalid(message: str, param: str | None = None) -> Refusal:
    """Refuse a value that makes no sense: 422."""
    return Refusal(422, "invalid", message, param=param)


def over_limit(
    status: int,
    limit: str,
    message: str,
    param: str | None = None,
    *,
    kind: str = "over_limit",
    retry_after: int | None = None,
) -> Refusal:
    """Refuse more than a limit allows: names it as `ServeOptions` does, and its option."""
    return Refusal(status, kind, f"{message} {option_of(limit)}", limit, retry_after, param)


def option_of(limit: str) -> str:
    """Return a sentence that names the option of a limit."""
    return f"Whoever runs the server can change it: --{limit.replace('_', '-')}."
