"""Coroutines that meet: which calls are computed together, errors, ends, and torch's modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zipmoe.model.meeting import Coroutine, Meeting, meet, meet_with_row


class Place(nn.Module):
    """Doubles numbers, alone or together, and notes which ones come together."""

    def __init__(self, name: str, log: list[tuple[str, tuple[int, ...]]]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.fails = False

    def compute(self, calls: Sequence[Any]) -> None:
        if self.fails:
            raise OSError(self.name)
        self.log.append((self.name, tuple(call["number"] for call in calls)))
        for call in calls:
            call["result"] = 2 * call["number"]

    def forward(self, number: int) -> int:
        call = {"number": number}
        if not meet(self, call):
            self.compute([call])
        return call["result"]


class Places(nn.Module):
    """Places a, b and c, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, tuple[int, ...]]] = []
        self.a, self.b, self.c = (Place(name, self.log) for name in "abc")
        self.meeting = Meeting([self.a, self.b, self.c])

    def route(self, number: int, names: str) -> Coroutine:
        """A pass through some places."""

        def compute() -> int:
            total = 0
            for name in names:
                total += self.get_submodule(name)(number)
            return total

        return Coroutine(compute, single_row=False)


def test_passes_on_the_same_way_meet_at_every_place() -> None:
    places = Places()
    passes = [places.route(number, "abc") for number in (1, 2, 3)]
    places.meeting.advance(passes)
    assert places.log == [("a", (1, 2, 3)), ("b", (1, 2, 3)), ("c", (1, 2, 3))]
    assert [each.result for each in passes] == [6, 12, 18]


def test_a_pass_that_is_ahead_waits_for_those_behind_and_for_nobody_who_does_not_come() -> None:
    places = Places()
    passes = [places.route(1, "ac"), places.route(2, "abc"), places.route(3, "bbb"), places.route(4, "")]
    places.meeting.advance(passes)
    assert places.log == [("a", (1, 2)), ("b", (2, 3)), ("b", (3,)), ("b", (3,)), ("c", (1, 2))]
    assert [each.result for each in passes] == [4, 12, 18, 0]


def test_a_pass_stops_before_the_call_after_the_last_one_that_is_allowed() -> None:
    places = Places()
    passes = [places.route(1, "abc"), places.route(2, "ab")]
    places.meeting.advance(passes, 2)
    assert places.log == [("a", (1, 2)), ("b", (1, 2))]
    assert [each.dead for each in passes] == [False, True]
    places.meeting.advance(passes, 2)
    assert places.log[2:] == [("c", (1,))]
    assert [each.result for each in passes] == [6, 8]


def test_calls_that_fail_are_computed_when_their_passes_are_advanced_again_together_or_alone() -> None:
    places = Places()
    first, second, third = passes = [places.route(number, "abc") for number in (1, 2, 3)]
    places.b.fails = True
    for members in (passes, [third]):
        with pytest.raises(OSError, match="b"):
            places.meeting.advance(members)
    places.b.fails = False
    places.meeting.advance([second])
    places.meeting.advance([first, third])
    assert places.log == [("a", (1, 2, 3)), ("b", (2,)), ("c", (2,)), ("b", (1, 3)), ("c", (1, 3))]
    assert [each.result for each in passes] == [6, 12, 18]


def test_an_error_of_a_pass_ends_that_pass_alone() -> None:
    places = Places()

    def broken() -> None:
        places.a(0)
        raise ZeroDivisionError("in the pass")

    bad, good = Coroutine(broken, single_row=False), places.route(1, "ab")
    for members in ([bad, good], [bad], [bad]):
        with pytest.raises(ZeroDivisionError, match="in the pass"):
            places.meeting.advance(members)
    places.meeting.advance([good])
    assert (good.result, bad.result, places.log) == (4, None, [("a", (0, 1)), ("b", (1,))])


def test_a_pass_that_is_closed_leaves_its_contexts() -> None:
    places = Places()
    left: list[str] = []

    def compute() -> None:
        try:
            places.a(1)
        finally:
            left.append("left")

    passes = [Coroutine(compute, single_row=False) for _ in range(2)]
    places.meeting.advance(passes[:1], 0)
    for each in passes:
        each.close()
        each.close()
    assert left == ["left"], "the second one never began"
    assert all(each.dead for each in passes)
    places.meeting.advance(passes)
    assert places.log == []


class Mode(TorchFunctionMode):
    """Changes nothing."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Mode, torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_call_in_a_mode_of_torch_is_computed_at_once_so_that_the_mode_reaches_no_other_pass(
    mode: Callable[[], Any],
) -> None:
    places = Places()

    def compute(number: int) -> int:
        with mode():
            within: int = places.a(number)
        return within + int(places.b(number))

    passes = [Coroutine(lambda number=number: compute(number), single_row=False) for number in (1, 2)]
    with torch.inference_mode():
        places.meeting.advance(passes)
    assert places.log == [("a", (1,)), ("a", (2,)), ("b", (1, 2))]
    assert [each.result for each in passes] == [4, 8]


def test_only_passes_of_a_single_row_meet_at_linears_and_nothing_meets_outside_of_a_pass() -> None:
    places = Places()

    def compute(number: int) -> bool:
        return meet_with_row(places.a, {"number": number})

    passes = [Coroutine(lambda row=row: compute(1), single_row=row) for row in (True, False)]
    places.meeting.advance(passes)
    assert [each.result for each in passes] == [True, False]
    assert not meet(places.a, {})
    assert not meet_with_row(places.a, {})
