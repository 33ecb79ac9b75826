"""Who runs when, and what is made of the times."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zipmoe.bench.rounds import interleave
from zipmoe.bench.timed_threads import Seconds
from zipmoe.errors import InvalidRequest


def contender(ran: list[str], name: str, walls_s: list[float]) -> Callable[[], Seconds]:
    def run() -> Seconds:
        ran.append(name)
        wall_s = walls_s[ran.count(name) - 1]
        return Seconds(wall_s, wall_s / 2)

    return run


def test_each_round_runs_everyone_once_and_begins_with_another() -> None:
    ran: list[str] = []
    interleave({name: contender(ran, name, [0.1] * 3) for name in "abc"}, 3)
    assert "".join(ran) == "abcbcacab"


def test_medians_ignore_one_disturbed_round() -> None:
    medians = interleave({"a": contender([], "a", [0.1, 0.3, 9.0])}, 3)["a"]
    assert (medians.wall_s, medians.busy_s) == (0.3, 0.15)


def test_a_slow_contender_leaves_with_three_samples() -> None:
    ran: list[str] = []
    interleave({"slow": contender(ran, "slow", [5.0] * 3), "fast": contender(ran, "fast", [0.1] * 9)}, 9)
    assert (ran.count("slow"), ran.count("fast")) == (3, 9)


def test_no_round_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="rounds have to be at least 1, not 0"):
        interleave({}, 0)
