"""Busy time: overlapping activities count once, idle time not at all."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace

import pytest

from zipmoe.services.expert_store import busy_clock
from zipmoe.services.expert_store.busy_clock import BusyClock


def test_time_counts_once_while_anything_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(busy_clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    clock = BusyClock()
    now[0] += 1
    assert clock.seconds == 0
    with clock:
        now[0] += 2
        with clock:
            now[0] += 4
            assert clock.seconds == 6
        now[0] += 8
    now[0] += 16
    assert clock.seconds == 14
    with suppress(KeyError), clock:
        now[0] += 32
        raise KeyError
    assert clock.seconds == 46
