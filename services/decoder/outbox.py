"""Collects results for the router: all ready results leave in one message; less urgent results wait a moment."""

from __future__ import annotations

import asyncio

from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Completed

HOLD_S = 0.001
"""Longest delay of a result that the router does not wait for, so that the result leaves with others. Writing a message
takes the interpreter from the workers for about a fifth of this time, just when the workers are to begin recovering."""


class Outbox:
    """Collects the results of one session in order.

    Attributes:
        ended: whether `end` was called. Results that are still collected leave with the last `take`.
        error: error with which the session ended; None after a normal end.

    Thread: the event loop's only.
    """

    def __init__(self) -> None:
        self.ended = False
        self.error: ZipMoeError | None = None
        self._results: list[Completed] = []
        self._ready = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, result: Completed) -> None:
        """Adds a result that leaves at once."""
        self._results.append(result)
        self._ready.set()

    def put_later(self, result: Completed) -> None:
        """Adds a result that leaves with the next one, or after `HOLD_S`."""
        self._results.append(result)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_S, self._ready.set)

    def end(self, error: ZipMoeError | None = None) -> None:
        """Ends the session after the collected results have been sent; the first end counts."""
        if not self.ended:
            self.ended = True
            self.error = error
            self._ready.set()

    async def take(self) -> list[Completed]:
        """Waits until results are due or the session ends; returns all collected results."""
        await self._ready.wait()
        self._ready.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        results, self._results = self._results, []
        return results
