from __future__ import annotations

import asyncio

from zipmoe.services.router.engine.event_stream import MOST_UNREAD, EventStream
from zipmoe.services.router.engine.request import RequestProgress, RequestStarted


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


def test_of_unread_progress_the_latest_is_kept_and_pauses_nothing() -> None:
    async def check() -> None:
        stream = EventStream(asyncio.get_running_loop(), lambda: None)
        stream.emit(RequestProgress(1, 0, 9))
        assert await stream.next() == (0, RequestProgress(1, 0, 9))
        for done in range(MOST_UNREAD):
            stream.emit(RequestProgress(0, done, 999))
        assert not stream.unread()
        stream.emit(RequestStarted(999, ()))
        assert await stream.next() == (0, RequestProgress(0, MOST_UNREAD - 1, 999))
        assert await stream.next() == (0, RequestStarted(999, ()))

    asyncio.run(check())
