"""Events arrive in order, from threads and from signal handlers, and no signal is slept through."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from zipmoe.cli.serving.signal_queue import SignalQueue


@pytest.fixture
def inbox() -> Iterator[SignalQueue[str]]:
    opened: SignalQueue[str] = SignalQueue()
    yield opened
    opened.close()


def test_events_come_in_order(inbox: SignalQueue[str]) -> None:
    for event in "abc":
        inbox.put(event)
    assert [inbox.get(None) for _ in range(3)] == ["a", "b", "c"]


def test_without_an_event_it_gives_up_in_time(inbox: SignalQueue[str]) -> None:
    assert inbox.get(0.0) is None
    assert inbox.get(0.01) is None


def test_a_thread_wakes_the_reader(inbox: SignalQueue[str]) -> None:
    thread = threading.Thread(target=inbox.put, args=("a",))
    thread.start()
    assert inbox.get(None) == "a"
    thread.join()


def test_more_events_than_a_pipe_holds_are_kept(inbox: SignalQueue[str]) -> None:
    for number in range(100_000):
        inbox.put(str(number))
    assert [inbox.get(None) for _ in range(100_000)] == [str(number) for number in range(100_000)]


def test_a_signal_whose_handler_has_not_run_yet_wakes_the_reader(inbox: SignalQueue[str]) -> None:
    # What the pipe holds when the kernel has delivered a signal but Python has not called the handler.
    os.write(inbox._writing, bytes([signal.SIGUSR1]))
    assert inbox.get(0.0) is None
    assert signal.set_wakeup_fd(inbox._writing, warn_on_full_buffer=False) == inbox._writing


def test_signals_are_never_slept_through(inbox: SignalQueue[str]) -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: inbox.put("signal"))
    answered = threading.Semaphore(0)

    def send() -> None:
        for _ in range(2000):
            os.kill(os.getpid(), signal.SIGUSR1)
            answered.acquire()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(2000):
            assert inbox.get(30.0) == "signal"
            answered.release()
    finally:
        answered.release(2000)
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_closing_it_gives_the_signals_back() -> None:
    outer: SignalQueue[str] = SignalQueue()
    inner: SignalQueue[str] = SignalQueue()
    inner.close()
    assert signal.set_wakeup_fd(outer._writing, warn_on_full_buffer=False) == outer._writing
    outer.close()
