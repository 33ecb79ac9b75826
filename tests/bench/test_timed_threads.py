"""Threads that share jobs, and whose processor time is what counts."""

from __future__ import annotations

import threading

import pytest

from zipmoe.bench.timed_threads import TimedThreads
from zipmoe.errors import InvalidRequest


@pytest.mark.parametrize("thread_count", [1, 2, 3])
def test_every_job_runs_once_and_job_i_on_thread_i_modulo_the_threads(thread_count: int) -> None:
    ran: list[tuple[int, int]] = []
    together = threading.Barrier(thread_count)

    def job(index: int) -> None:
        if index < thread_count:
            together.wait(10)  # no thread can take two of these
        ran.append((index, threading.get_ident()))

    with TimedThreads(thread_count) as threads:
        threads.run([lambda index=index: job(index) for index in range(7)])  # type: ignore[misc]
    assert sorted(index for index, _ in ran) == list(range(7))
    assert len({(index % thread_count, thread) for index, thread in ran}) == thread_count


def test_what_the_threads_of_a_job_compute_is_counted_too() -> None:
    done = threading.Event()

    def burn() -> None:
        while not done.is_set():
            sum(range(1000))

    def job() -> None:
        thread = threading.Thread(target=burn)
        thread.start()
        done.wait(0.05)
        done.set()
        thread.join()

    with TimedThreads(1) as threads:
        assert threads.run([job]).busy_s > 0.001


def test_a_job_that_fails_is_heard_of() -> None:
    def job() -> None:
        raise ValueError("out of paper")

    for thread_count in (1, 2):
        with TimedThreads(thread_count) as threads, pytest.raises(ValueError, match="out of paper"):
            threads.run([job])


@pytest.mark.parametrize("thread_count", [0, -1, 257])
def test_no_thread_or_too_many_are_refused(thread_count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"threads have to be 1 to 256, not {thread_count}"):
        TimedThreads(thread_count)
