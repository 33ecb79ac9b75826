"""Results on their way to the router: nothing is late, nothing is lost, company is welcome."""

from __future__ import annotations

import asyncio

from zipmoe.errors import Unavailable
from zipmoe.residency.pools import Completed
from zipmoe.services.decoder.outbox import Outbox

FIRST, SECOND, THIRD = (Completed(number, None) for number in (1, 2, 3))


async def test_results_that_are_ready_leave_together_and_in_order() -> None:
    outbox = Outbox()
    outbox.put_later(FIRST)
    outbox.put(SECOND)
    outbox.put_later(THIRD)
    assert await outbox.take() == [FIRST, SECOND, THIRD]
    assert not outbox.ended


async def test_a_result_that_nobody_waits_for_leaves_in_the_end() -> None:
    outbox = Outbox()
    outbox.put_later(FIRST)
    assert await outbox.take() == [FIRST]
    outbox.put_later(SECOND)
    assert await outbox.take() == [SECOND]


async def test_a_result_that_left_with_another_does_not_wake_anybody_again() -> None:
    outbox = Outbox()
    outbox.put_later(FIRST)
    outbox.put(SECOND)
    await outbox.take()
    taking = asyncio.ensure_future(outbox.take())
    outbox.put_later(THIRD)
    assert await taking == [THIRD]


async def test_what_is_there_at_the_end_is_sent_and_the_first_end_counts() -> None:
    outbox = Outbox()
    outbox.put_later(FIRST)
    error = Unavailable("gone")
    outbox.end(error)
    outbox.end(None)
    assert await outbox.take() == [FIRST]
    assert outbox.ended
    assert outbox.error is error
