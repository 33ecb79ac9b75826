"""Comments in a silent stream of server-sent events: proxies and clients with timeouts see that the answer goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

COMMENT: Final = b": keep-alive\n\n"
"""A comment of the event stream format: clients skip the line, and proxies count its bytes."""


async def with_comments(
    events: AsyncIterator[bytes], silence_s: float, comment: bytes = COMMENT
) -> AsyncIterator[bytes]:
    """Yields the events of a stream, and a comment whenever none has come for some time.

    A reader that goes away ends the events, as if it read them itself.

    Args:
        events: server-sent events, whole ones.
        silence_s: seconds on the wall clock after which a comment is due.
        comment: the comment, or an event that clients skip as well.
    """
    coming = asyncio.ensure_future(_next(events))
    try:
        while True:
            await asyncio.wait((coming,), timeout=silence_s)
            if not coming.done():
                yield comment
                continue
            event = coming.result()
            if event is None:
                return
            # The next event is asked for only when this one has been written, so that a slow client slows the stream.
            yield event
            coming = asyncio.ensure_future(_next(events))
    finally:
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # an error of a done event was raised above
            await coming


async def _next(events: AsyncIterator[bytes]) -> bytes | None:
    return await anext(events, None)
