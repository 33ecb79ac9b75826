from __future__ import annotations

import asyncio

from zipmoe.services.router.engine.event_stream import MOST_UNREAD, EventStream
from zipmoe.services.router.engine.request import RequestStarted


def test_a_stream_that_is_not_read_says_so_and_tells_when_it_is_read_again() -> None:
    async def check() -> None:
        told: list[int] = []
        stream = EventStream(asyncio.get_running_loop(), lambda: told.append(1))
        for _ in range(MOST_UNREAD):
            assert not stream.unread()
            stream.emit(RequestStarted(1, None), 3)
        assert stream.unread()
        assert told == []
        for _ in range(MOST_UNREAD):
            assert await stream.next() == (3, RequestStarted(1, None))
            assert not stream.unread()
        assert told == [1]

    asyncio.run(check())
