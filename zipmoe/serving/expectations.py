"""Expects times of passes and acceptance of drafted tokens, from those that were measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from statistics import median

from zipmoe.serving.drafts import Draft

SAMPLES = 5
FRESH_PASSES = 512
"""Passes after which times of passes with some number of rows are forgotten, so that this number is tried again."""

UNTRIED_ROW = 0.05
"""Share of a pass that one more row is taken to cost before any was tried."""

ADAPTION = 0.1
"""Weight of the latest token in an acceptance rate."""


class PassTimes:
    """Times of recent passes, by number of rows."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._noted: dict[int, int] = {}
        self._passes = 0

    def note(self, rows: int, seconds: float) -> None:
        """Notes the time of a pass."""
        self._passes += 1
        if self._passes - self._noted.get(rows, self._passes) > FRESH_PASSES:
            del self._times[rows]
        self._times.setdefault(rows, deque(maxlen=SAMPLES)).append(seconds)
        self._noted[rows] = self._passes

    def skip(self) -> None:
        """Notes that no pass took place where one might have."""
        self._passes += 1

    @property
    def known(self) -> bool:
        """Whether the time of any recent pass is known."""
        return any(self._passes - when <= FRESH_PASSES for when in self._noted.values())

    def expected(self, rows: int) -> float:
        """Returns the expected seconds of a pass; 1 before any pass was noted.

        Between two tried numbers of rows the time is interpolated. Outside of them it goes on with the slope of the
        nearest two, but falls by `UNTRIED_ROW` of the pass a row at least. With a single one, each row costs that
        share.
        """
        tried = [each for each, when in sorted(self._noted.items()) if self._passes - when <= FRESH_PASSES]
        if not tried:
            return 1.0
        times = {each: median(self._times[each]) for each in tried}
        if rows in times:
            return times[rows]
        first = tried[0]
        if len(tried) == 1 and rows > first:
            return times[first] * (1 + UNTRIED_ROW * (rows - first))
        slope = 0.0
        low = max((each for each in tried[:-1] if each < rows), default=first)
        if len(tried) > 1:
            high = tried[tried.index(low) + 1]
            slope = max(0.0, times[high] - times[low]) / (high - low)
        if rows > first:
            return times[low] + slope * (rows - low)
        fewer = first - rows
        return max(1e-9, min(times[first] - slope * fewer, times[first] / (1 + UNTRIED_ROW * fewer)))


class AcceptanceRates:
    """Share of drafted tokens that were the request's own choice, by the grade of the token."""

    def __init__(self, rates: Sequence[float]) -> None:
        """Starts with a rate for each grade. The last one is that of all higher grades, too."""
        self.rates = list(rates)

    def note(self, grade: int, accepted: bool) -> None:
        """Notes whether a drafted token of a grade was accepted."""
        place = self._place(grade)
        self.rates[place] += ADAPTION * (accepted - self.rates[place])

    def chances(self, draft: Draft) -> Iterator[float]:
        """Yields, for each token of a draft, the probability that it and all before it are accepted."""
        chance = 1.0
        for place in range(len(draft.tokens)):
            chance *= self.rates[self._place(draft.grade(place))]
            yield chance

    def _place(self, grade: int) -> int:
        return min(grade, len(self.rates) - 1)
