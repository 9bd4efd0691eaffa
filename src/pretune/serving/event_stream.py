"""Answers that come piece by piece, and clients that hang up in the middle of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from pretune.serving.json_body import json_bytes
from pretune.serving.refusal import Refusal

T = TypeVar("T")

#: The end of a stream, as OpenAI and those who follow it have it.
DONE = b"data: [DONE]\n\n"
#: What a stream ends with after a mistake of ours.
INTERNAL = Refusal(500, "internal", "A mistake of the server, not of yours.")

#: What many clients take for the end of a line, though JSON does not escape it.
_LINE_ENDS = {end.encode(): f"\\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}


def event(body: Any) -> bytes:
    """A server-sent event with a JSON body on one line."""
    line = json_bytes(body)
    for end, escaped in _LINE_ENDS.items():
        line = line.replace(end, escaped)
    return b"data: " + line + b"\n\n"


async def hung_up(receive: Receive) -> None:
    """Wait until the client hangs up; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events. If the client hangs up, their source is closed at once.

    Args:
        events: what is sent.
        source: what the events are made of.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], source: Begun[Any]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._events, self._source = events, source

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(hung_up(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                # Sending to a client that is gone is no fault of ours.
                with suppress(OSError):
                    sending.result()
        finally:
            await _cancelled(sending, gone)
            await self._events.aclose()
            # Events that nobody has begun to read do not close what they are made of.
            await self._source.aclose()


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def merged(
    streams: Sequence[AsyncGenerator[T, None]],
) -> AsyncGenerator[tuple[int, T], None]:
    """Yield the items of several streams as they come, each with the number of its stream.

    Closing it closes all streams.
    """
    if len(streams) == 1:
        # The usual case, which needs no task beside the one that asks.
        try:
            async for own in streams[0]:
                yield 0, own
        finally:
            await streams[0].aclose()
        return
    # An item waits until it is taken: who reads slowly is not written for without end.
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue(maxsize=1)

    async def forward(number: int, stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                await queue.put((number, item))
        except Exception as error:  # it belongs to whoever reads the queue
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.ensure_future(forward(*numbered)) for numbered in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        await _cancelled(*tasks)
        for stream in streams:
            await stream.aclose()


class Begun(Generic[T]):
    """A stream whose first item has been waited for.

    Args:
        stream: the rest.
        first: its first items: one, or none where the stream is empty.
    """

    def __init__(self, stream: AsyncGenerator[T, None], first: list[T]) -> None:
        self._stream, self._first = stream, first

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._stream)

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()


async def begun(stream: AsyncGenerator[T, None]) -> Begun[T]:
    """Wait for the first item of a stream, so that an error before it still has a status."""
    try:
        return Begun(stream, [await anext(stream)])
    except StopAsyncIteration:
        return Begun(stream, [])
    except BaseException:
        await stream.aclose()
        raise


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do several things side by side, and return their results in order.

    If one fails, or nobody waits any more, the others are cancelled.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return [await task for task in tasks]
    finally:
        await _cancelled(*tasks)
