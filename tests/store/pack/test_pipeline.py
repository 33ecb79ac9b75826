import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from zipmoe.store.pack.pipeline import run_in_order


def test_results_come_in_the_order_of_the_jobs_whatever_the_order_they_end_in() -> None:
    second_done = threading.Event()

    def work(job: int, buffers: str) -> int:
        if job == 0:
            assert second_done.wait(30)
        if job == 1:
            second_done.set()
        return job * 10

    assert list(run_in_order(range(5), work, ["a", "b"], 2)) == [(job, job * 10) for job in range(5)]


def test_a_set_of_buffers_is_never_shared_and_bounds_what_is_in_flight() -> None:
    busy: set[int] = set()
    taken: list[int] = []
    lock = threading.Lock()

    def work(job: int, buffers: int) -> int:
        with lock:
            assert buffers not in busy
            busy.add(buffers)
        return buffers

    def jobs() -> list[int]:
        taken.extend(range(20))
        return list(range(20))

    for _, buffers in run_in_order(jobs(), work, [1, 2, 3], 4):
        with lock:
            assert len(busy) <= 3
            busy.remove(buffers)  # still ours until the next result is asked for


def test_jobs_are_taken_only_when_there_are_buffers_for_them() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(10):
            taken.append(job)
            yield job

    results = run_in_order(jobs(), lambda job, buffers: job, ["a", "b"], 2)
    next(results)
    assert taken == [0, 1]
    next(results)
    assert taken == [0, 1, 2]
    results.close()


def test_an_error_is_raised_in_the_turn_of_its_job_and_ends_the_rest() -> None:
    started: list[int] = []

    def work(job: int, buffers: str) -> int:
        started.append(job)
        if job == 2:
            raise KeyError(job)
        return job

    seen: list[int] = []

    def consume() -> None:
        for job, _ in run_in_order(range(100), work, ["a", "b"], 1):
            seen.append(job)

    with pytest.raises(KeyError):
        consume()
    assert seen == [0, 1]
    assert max(started) <= 3


def test_closing_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with closing(run_in_order(range(100), lambda job, buffers: job, ["a", "b"], 2)) as results:
        next(results)
    assert threading.active_count() == before


def test_no_jobs_give_no_results() -> None:
    assert list(run_in_order([], lambda job, buffers: job, ["a"], 1)) == []
