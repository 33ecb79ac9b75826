"""What experts cost: bytes from disk by what for, and of those what requests are charged with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import structlog

from zipmoe.residency.counters import Reason
from zipmoe.residency.pools import Urgency
from zipmoe.services.decoder.client import FetchResult

_LOG = structlog.get_logger(__name__)
_REASONS = {Urgency.NEEDED: Reason.NEED, Urgency.PREFETCH: Reason.PREFETCH, Urgency.FILL: Reason.FILL}


@dataclass(slots=True)
class ExpertUsage:
    """Running totals of what experts cost requests; a step's share is a difference of two of these."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    stall_s: float = 0.0

    def since(self, before: ExpertUsage) -> ExpertUsage:
        """What was added since `before` was copied."""
        return ExpertUsage(
            self.hits - before.hits,
            self.misses - before.misses,
            self.bytes_read - before.bytes_read,
            self.stall_s - before.stall_s,
        )


class ReadAccount:
    """Takes note of operations that have ended.

    Attributes:
        usage: what requests are charged with: all but what fills slots that would stay free.
        read_bytes: from disk, by what for: NEED, PREFETCH or FILL.

    Thread: the model's thread.
    """

    def __init__(self) -> None:
        self.usage = ExpertUsage()
        self.read_bytes: Counter[Reason] = Counter()
        self._has_told = False

    def note(self, urgency: Urgency | None, result: FetchResult) -> None:
        """An operation has ended; `urgency` is None if it was a lost decoder's, and so of no use to anybody."""
        if urgency is None:
            return
        self.read_bytes[_REASONS[urgency]] += result.bytes_read
        if urgency is not Urgency.FILL:
            self.usage.bytes_read += result.bytes_read
        elif result.error is not None and not self._has_told:
            self._has_told = True
            _LOG.warning("fill_failed", reason=result.error.message, effect="not tried again until a decoder attaches")

    def joined(self) -> None:
        """A decoder has attached: of what fails from here on, the first is told again."""
        self._has_told = False
