"""Runs passes as coroutines that meet at modules of the model, where the calls of several passes are computed together.

A pass is a plain call, such as stock's forward. Its coroutine is a greenlet, since stock's forward is no generator. The
coroutine is suspended at each call of a meeting place. When all coroutines have stopped, the calls at the place that is
furthest behind are computed together, and their coroutines go on. So no coroutine waits for one that does not come.

Torch's modes belong to the thread, not to a coroutine. A call inside of a mode that the pass has entered is therefore
computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, Protocol

import torch
from greenlet import getcurrent, greenlet


class MeetingPlace(Protocol):
    """A module that can compute several calls together."""

    def compute(self, calls: Sequence[Any]) -> None:
        """Computes calls, each with the bits that it has alone. After an error all of them may be computed again."""
        ...


class Coroutine(greenlet):
    """A pass that can be suspended.

    Attributes:
        place: the place at which the pass waits; None if the pass can go on, and after its end.
        call: the call for which it waits.
        result: the result of the pass after its end.
        failure: the exception that has ended the pass.
        modes: torch's modes outside of the pass.
    """

    def __init__(self, compute: Callable[[], Any], *, single_row: bool) -> None:
        """Prepares a pass; nothing is computed yet.

        Args:
            compute: computes the pass.
            single_row: whether the pass also stops at the linears, which several single rows can share.
        """
        super().__init__(compute)
        self.single_row = single_row
        self.place: MeetingPlace | None = None
        self.call: Any = None
        self.result: Any = None
        self.failure: BaseException | None = None
        self.modes: Hashable = None

    def go_on(self) -> None:
        """Runs the pass until it waits or ends; raises the exception that ends the pass, also in later calls."""
        if self.failure is not None:
            raise self.failure
        self.place = self.call = None
        try:
            outcome = self.switch()
        except BaseException as error:
            self.failure = error
            raise
        if self.dead:
            self.result = outcome

    def close(self) -> None:
        """Ends the pass where it waits. Has no effect on a pass that has ended."""
        self.throw()
        self.place = self.call = None


def meet(place: MeetingPlace, call: Any) -> bool:
    """Suspends the running coroutine until the call has been computed together with others.

    Returns:
        False if the caller has to compute the call: no coroutine runs, or the pass has entered a mode of torch.
    """
    current = getcurrent()
    if not isinstance(current, Coroutine) or current.modes != _modes():
        return False
    assert current.parent is not None
    current.place, current.call = place, call
    current.parent.switch()
    return True


def meet_with_row(place: MeetingPlace, call: Any) -> bool:
    """Does the same as `meet` in a pass of a single row; returns False in any other pass."""
    current = getcurrent()
    return isinstance(current, Coroutine) and current.single_row and meet(place, call)


class Meeting:
    """Advances the coroutines of passes through one model. Thread: one at a time per model."""

    def __init__(self, places: Iterable[MeetingPlace]) -> None:
        """Takes the meeting places, about in the order in which a pass reaches them."""
        self._order: dict[Any, int] = {place: index for index, place in enumerate(places)}

    def advance(self, passes: Sequence[Coroutine], most: int | None = None) -> None:
        """Advances each pass to its end, or past `most` of the calls at which it waits and up to the next such call.

        Raises:
            BaseException: error of a pass or of the computation of its calls. A pass that has failed by itself raises
                the same error whenever it is advanced again. All other passes stay where they are and can go on.
        """
        modes = _modes()
        left = dict.fromkeys(passes, -1 if most is None else most)
        for each in passes:
            each.modes = modes
            if each.place is None and (not each.dead or each.failure is not None):
                each.go_on()
        while waiting := [each for each in passes if each.place is not None and left[each]]:
            place = min((each.place for each in waiting), key=self._order.__getitem__)
            assert place is not None
            met = [each for each in waiting if each.place is place]
            place.compute([each.call for each in met])
            for each in met:
                each.place = None
                left[each] -= 1
            for each in met:
                each.go_on()


def _modes() -> Hashable:
    """Returns the modes of torch in this thread that a `with` block can change for the duration of the block."""
    return (
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_default_dtype(),
    )
