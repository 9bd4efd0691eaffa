from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from pretune.serving.event_stream import Begun, EventStream, begun, event, merged, together


class Source:
    """Counts up to `count`, and notes when it ends."""

    def __init__(self, count: int, *, wait: float = 0, error: Exception | None = None) -> None:
        self.count, self.wait, self.error = count, wait, error
        self.given, self.ended = 0, False

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for i in range(self.count):
                await asyncio.sleep(self.wait)
                self.given += 1
                yield i
            if self.error is not None:
                raise self.error
        finally:
            self.ended = True


async def taken(
    stream: AsyncGenerator[Any, None] | Begun[Any], count: int | None = None
) -> list[Any]:
    items = []
    async for item in stream:
        items.append(item)
        if len(items) == count:
            break
    await stream.aclose()
    return items


def test_merged_streams_keep_the_order_of_each() -> None:
    sources = [Source(3), Source(5), Source(0)]
    items = asyncio.run(taken(merged([source.items() for source in sources])))
    assert [i for number, i in items if number == 0] == [0, 1, 2]
    assert [i for number, i in items if number == 1] == [0, 1, 2, 3, 4]
    assert len(items) == 8


def test_closing_merged_streams_closes_each() -> None:
    sources = [Source(10**6), Source(10**6, wait=100)]
    asyncio.run(taken(merged([source.items() for source in sources]), 3))
    assert [source.ended for source in sources] == [True, True] or not sources[1].given
    assert sources[0].ended


def test_who_reads_slowly_is_not_written_for_without_end() -> None:
    source = Source(10**6)

    async def read() -> int:
        stream = merged([source.items()])
        await anext(stream)
        await asyncio.sleep(0.05)
        given = source.given
        await stream.aclose()
        return given

    assert asyncio.run(read()) <= 4


def test_an_error_of_a_stream_is_raised_and_the_others_are_closed() -> None:
    bad, good = Source(1, error=ValueError("no")), Source(10**6)

    async def read() -> None:
        with pytest.raises(ValueError, match="no"):
            await taken(merged([bad.items(), good.items()]))

    asyncio.run(read())
    assert good.ended


def test_a_begun_stream_gives_all_items_and_raises_at_once() -> None:
    async def read() -> list[int]:
        return await taken(await begun(Source(3).items()))

    assert asyncio.run(read()) == [0, 1, 2]

    async def fail() -> None:
        with pytest.raises(ValueError, match="no"):
            await begun(Source(0, error=ValueError("no")).items())

    asyncio.run(fail())


def test_an_event_is_one_line_for_every_client() -> None:
    text = "a\nb\r\u2028c\u2029d\x85e\x0bf\x1cg"
    sent = event({"text": text})
    assert sent.decode().splitlines() == [sent.decode()[:-2], ""]
    assert json.loads(sent.removeprefix(b"data: ")) == {"text": text}


def test_a_client_that_hangs_up_closes_the_source() -> None:
    source, sent = Source(10**6, wait=0.001), list[dict[str, Any]]()

    async def serve() -> None:
        async def events(items: Begun[int]) -> AsyncGenerator[bytes, None]:
            async for item in items:
                yield event(item)

        async def receive() -> dict[str, Any]:
            while len(sent) < 4:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        begin = await begun(source.items())
        stream = EventStream(events(begin), begin)
        await asyncio.wait_for(stream({"type": "http"}, receive, send), 10)

    asyncio.run(serve())
    assert source.ended
    assert source.given < 10**6
    assert sent[0]["type"] == "http.response.start"


def test_together_gives_results_in_order_and_cancels_the_rest_of_a_failure() -> None:
    ended: list[str] = []

    async def work(name: str, seconds: float, error: bool = False) -> str:
        try:
            await asyncio.sleep(seconds)
            if error:
                raise ValueError(name)
            return name
        finally:
            ended.append(name)

    assert asyncio.run(together([work("a", 0.01), work("b", 0)])) == ["a", "b"]
    ended.clear()
    with pytest.raises(ValueError, match="a"):
        asyncio.run(together([work("a", 0, error=True), work("b", 100)]))
    assert ended == ["a", "b"]
