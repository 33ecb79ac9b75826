"""The way from threads onto the event loop: nothing lost, order kept, few wake-ups."""

from __future__ import annotations

import asyncio
import threading

from zipmoe.process.loop_queue import LoopQueue


async def test_events_of_many_threads_all_arrive_and_each_threads_own_in_order() -> None:
    arrived: list[tuple[int, int]] = []
    done = asyncio.Event()
    threads, events = 4, 500

    def handle(event: tuple[int, int]) -> None:
        arrived.append(event)
        if len(arrived) == threads * events:
            done.set()

    inbox = LoopQueue(asyncio.get_running_loop(), handle)

    def post(thread: int) -> None:
        for number in range(events):
            inbox.post((thread, number))

    posters = [threading.Thread(target=post, args=(number,)) for number in range(threads)]
    for poster in posters:
        poster.start()
    await done.wait()
    for poster in posters:
        poster.join()
    for thread in range(threads):
        assert [number for sender, number in arrived if sender == thread] == list(range(events))


async def test_one_wake_up_serves_all_events_that_are_there() -> None:
    arrived: list[int] = []
    loop = asyncio.get_running_loop()
    inbox = LoopQueue(loop, arrived.append)
    for number in range(3):
        inbox.post(number)  # the loop cannot run before this coroutine waits
    woken = loop.create_future()
    loop.call_soon(woken.set_result, None)  # behind the one wake-up
    await woken
    assert arrived == [0, 1, 2]
