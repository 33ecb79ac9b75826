"""Runs the prompts of one HTTP request on the router, some at a time, and merges their events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from zipmoe.client import Event

MOST_TOGETHER: Final = 16
"""Prompts of one HTTP request that are at the router at the same time."""

_MOST_UNREAD: Final = 64


async def merged(begins: Sequence[Callable[[], AsyncIterator[Event]]]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yields the events of several generations as they come, each behind the number of its generation.

    At most `MOST_TOGETHER` generations run at a time. Closing the iterator cancels those that run.

    Args:
        begins: begins each generation.

    Raises:
        ZipMoeError: the error of the first generation that fails; the others are cancelled.
    """
    events: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue(_MOST_UNREAD)
    places = asyncio.Semaphore(MOST_TOGETHER)

    async def run(number: int, begin: Callable[[], AsyncIterator[Event]]) -> None:
        generated: Any = begin()  # a generator, which `AsyncIterator` does not tell
        async with places, aclosing(generated) as own:
            async for event in own:
                await events.put((number, event))

    async def announce_end() -> None:
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        await events.put(None)

    running = [asyncio.ensure_future(run(number, begin)) for number, begin in enumerate(begins)]
    ending = asyncio.ensure_future(announce_end())
    try:
        while (item := await events.get()) is not None:
            yield item
        for task in running:
            if task.done():
                task.result()
    finally:
        for task in (*running, ending):
            task.cancel()
        await asyncio.gather(*running, ending, return_exceptions=True)
