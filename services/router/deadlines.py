"""How long anybody waits for what a pass computes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self


class Deadlines(NamedTuple):
    """The deadlines of the requests that share a pass, on `time.monotonic`; infinite where there is none.

    Attributes:
        first_s: when the first of them is late: the pass waits no longer, so that this one ends and the others go on.
        last_s: when all of them are: what the pass has asked for is of no use to it any more.
    """

    first_s: float = math.inf
    last_s: float = math.inf

    @classmethod
    def of(cls, each_s: Iterable[float]) -> Self:
        """Of at least one request."""
        ordered = sorted(each_s)
        return cls(ordered[0], ordered[-1])


NO_DEADLINES = Deadlines()
"""Of what no request has asked for."""
