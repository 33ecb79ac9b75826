"""Runs passes as coroutines that meet at modules of the model, so that calls of several passes are computed together.

A pass is the plain call of a function, such as stock's forward. The coroutine is a greenlet, since stock's forward is no
generator and torch's modes belong to the thread. A coroutine is suspended at a call of a meeting place. When all have
stopped, `advance` computes the calls of the place that is furthest behind, and lets their coroutines go on. So it never
waits for a coroutine that does not come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from greenlet import getcurrent, greenlet
from torch import nn


class MeetingPlace(Protocol):
    """A module that can compute several calls together."""

    def compute(self, calls: Sequence[Any]) -> None:
        """Computes calls, each with the bits that it has alone; after an error all of them may be computed again."""
        ...


class Coroutine(greenlet):
    """A pass that can be suspended.

    Attributes:
        place: where the pass is suspended; None before its start, after its end, and when its call is computed.
        call: the call of that place.
        result: the result of the pass after its end.
        error: the exception that has ended the pass.
    """

    def __init__(self, compute: Callable[[], Any], *, rows: bool) -> None:
        """Prepares a pass; nothing is computed yet.

        Args:
            compute: computes the pass.
            rows: whether the pass has a single row, so that it also meets others at linears.
        """
        super().__init__(compute)
        self.rows = rows
        self.place: MeetingPlace | None = None
        self.call: Any = None
        self.result: Any = None
        self.error: BaseException | None = None

    def resume(self) -> None:
        """Goes on until the next meeting place or the end; raises the error that ends or has ended the pass."""
        if self.error is not None:
            raise self.error
        try:
            outcome = self.switch()
        except BaseException as error:
            self.error = error
            raise
        if self.dead:
            self.result = outcome

    def close(self) -> None:
        """Ends the pass where it is suspended; no effect on one that has ended."""
        self.throw()


def meet(place: MeetingPlace, call: Any) -> bool:
    """Suspends the running coroutine until `advance` has computed the call; False where none runs."""
    current = getcurrent()
    if not isinstance(current, Coroutine):
        return False
    assert current.parent is not None
    current.place, current.call = place, call
    current.parent.switch()
    return True


def meet_with_row(place: MeetingPlace, call: Any) -> bool:
    """Does the same if the coroutine computes a single row."""
    current = getcurrent()
    return isinstance(current, Coroutine) and current.rows and meet(place, call)


class Meeting:
    """Advances coroutines that meet at the modules of one model. Thread: one at a time per model."""

    def __init__(self, model: nn.Module) -> None:
        """Takes the order of the model's modules for the order in which a pass comes to them."""
        self._order: dict[Any, int] = {module: index for index, module in enumerate(model.modules())}

    def advance(self, passes: Sequence[Coroutine], most: int | None = None) -> None:
        """Advances passes until each has ended, or has left `most` meeting places behind and stands at the next.

        Raises:
            Exception: that of a place or of a pass. The other passes go on from where they are at the next call, and so
                do those whose call has failed.
        """
        left = dict.fromkeys(passes, -1 if most is None else most)
        while True:
            for each in passes:
                if each.place is None and not each.dead or each.error is not None:
                    each.resume()
            waiting = [each for each in passes if each.place is not None and left[each]]
            if not waiting:
                return
            place = min((each.place for each in waiting), key=self._order.__getitem__)
            assert place is not None
            met = [each for each in waiting if each.place is place]
            place.compute([each.call for each in met])
            for each in met:
                each.place = each.call = None
                left[each] -= 1
