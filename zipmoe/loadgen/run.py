"""Sends jobs in an open or a closed loop and records the arrival time of every token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from zipmoe.errors import ZipMoeError
from zipmoe.loadgen.jobs import Job
from zipmoe.loadgen.sample import RequestSample
from zipmoe.loadgen.server import AnswerUsage, Server

OnSample = Callable[[RequestSample], None]
"""Callback for progress, called at the end of each job."""


async def open_loop(
    server: Server, jobs: Sequence[Job], due_s: Sequence[float], on_sample: OnSample
) -> list[RequestSample]:
    """Sends each job at its due time, even if earlier jobs still run.

    Args:
        server: the server to ask.
        jobs: the jobs in order.
        due_s: due time of each job, in seconds from now, ascending.
        on_sample: called at the end of each job.

    Returns:
        One sample for each job, in the order of the jobs.
    """
    clock = _Clock()

    async def send(job: Job, when_s: float) -> RequestSample:
        await asyncio.sleep(max(0.0, when_s - clock.now_s()))
        return await _ask(server, job, when_s, clock, on_sample)

    return list(await asyncio.gather(*(send(job, when_s) for job, when_s in zip(jobs, due_s, strict=True))))


async def closed_loop(
    server: Server, jobs: Sequence[Job], concurrency: int, on_sample: OnSample
) -> list[RequestSample]:
    """Sends jobs from several clients; a client waits for the end of an answer before it sends the next job.

    Args:
        server: the server to ask.
        jobs: the jobs in order; a free client takes the next job.
        concurrency: number of clients, >= 1.
        on_sample: called at the end of each job.

    Returns:
        One sample for each job, in the order of the jobs.
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
