"""Deadlines of the requests that share a forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple, Self


class Deadlines(NamedTuple):
    """First and last deadline of the requests that share a pass, on `time.monotonic`; infinite without a deadline.

    Attributes:
        first_s: the earliest deadline. The pass waits for experts until then. Afterwards the late request ends, and the
            pass is computed again for the other requests.
        last_s: the latest deadline. Experts that the pass has asked for are of no use to the pass afterwards.
    """

    first_s: float = math.inf
    last_s: float = math.inf

    @classmethod
    def of(cls, each_s: Iterable[float]) -> Self:
        """Takes the first and the last of at least one deadline."""
        ordered = sorted(each_s)
        return cls(ordered[0], ordered[-1])


NO_DEADLINES = Deadlines()
"""Deadlines outside a pass, when no request waits for experts: both infinite."""
