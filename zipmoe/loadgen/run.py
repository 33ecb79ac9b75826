"""Sends jobs when they are due, or as fast as so many clients do, and notes when their tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from zipmoe.errors import ZipMoeError
from zipmoe.loadgen.jobs import Job
from zipmoe.loadgen.sample import RequestSample
from zipmoe.loadgen.server import AnswerUsage, Server

OnSample = Callable[[RequestSample], None]
"""Called as each request ends, for whoever shows progress."""


async def open_loop(
    server: Server, jobs: Sequence[Job], due_s: Sequence[float], on_sample: OnSample
) -> list[RequestSample]:
    """Sends each job at its time, however many others still run.

    Args:
        server: who is asked.
        jobs: what, in order.
        due_s: when, in seconds from now, ascending; one for each.
        on_sample: called as each ends.

    Returns:
        One sample a job, in their order.
    """
    clock = _Clock()

    async def send(job: Job, when_s: float) -> RequestSample:
        await asyncio.sleep(max(0.0, when_s - clock.now_s()))
        return await _ask(server, job, when_s, clock, on_sample)

    return list(await asyncio.gather(*(send(job, when_s) for job, when_s in zip(jobs, due_s, strict=True))))


async def closed_loop(
    server: Server, jobs: Sequence[Job], concurrency: int, on_sample: OnSample
) -> list[RequestSample]:
    """Has so many clients send one job after the other.

    Args:
        server: who is asked.
        jobs: what; whoever is free takes the next.
        concurrency: clients, >= 1.
        on_sample: called as each ends.

    Returns:
        One sample a job, in their order.
    """
    clock = _Clock()
    waiting = iter(jobs)
    samples: list[RequestSample] = []

    async def work() -> None:
        for job in waiting:  # shared: each job goes to one client
            sample = await _ask(server, job, clock.now_s(), clock, on_sample)
            samples.append(sample)

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return sorted(samples, key=lambda sample: sample.index)


class _Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin_s = self._loop.time()

    def now_s(self) -> float:
        return self._loop.time() - self._begin_s


async def _ask(server: Server, job: Job, due_s: float, clock: _Clock, on_sample: OnSample) -> RequestSample:
    times: list[float] = []
    told, error = AnswerUsage(), None
    try:
        async with aclosing(server.ask(job)) as answer:  # type: ignore[type-var]  # it is a generator
            async for item in answer:
                if item is None:
                    times.append(clock.now_s())
                else:
                    told = item
    except ZipMoeError as raised:
        error = type(raised).__name__
    sample = RequestSample(job.index, due_s, tuple(times), clock.now_s(), *told, error=error)
    on_sample(sample)
    return sample
