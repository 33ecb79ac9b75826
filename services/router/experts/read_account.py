"""Costs of experts: bytes read from disk by reason, and the totals that are charged to requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import structlog

from zipmoe.residency.counters import Reason
from zipmoe.residency.pools import Completed, Urgency

_LOG = structlog.get_logger(__name__)
_REASONS = {Urgency.NEEDED: Reason.NEED, Urgency.PREFETCH: Reason.PREFETCH, Urgency.FILL: Reason.FILL}


@dataclass(slots=True)
class ExpertUsage:
    """Running totals of hits, misses, bytes read and stalls; the usage of a pass is a difference of two totals."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    stall_s: float = 0.0

    def since(self, before: ExpertUsage) -> ExpertUsage:
        """Returns the difference to the earlier copy `before`."""
        return ExpertUsage(
            self.hits - before.hits,
            self.misses - before.misses,
            self.bytes_read - before.bytes_read,
            self.stall_s - before.stall_s,
        )


class ReadAccount:
    """Accounts for the bytes that ended operations have read.

    Attributes:
        usage: totals that are charged to requests; they exclude fills of free slots.
        read_bytes: bytes read from disk by reason: NEED, PREFETCH or FILL.

    Thread: the model thread.
    """

    def __init__(self) -> None:
        self.usage = ExpertUsage()
        self.read_bytes: Counter[Reason] = Counter()
        self._has_told = False

    def record_result(self, urgency: Urgency | None, result: Completed) -> None:
        """Accounts for an operation that has ended; one of a lost decoder has `urgency` None and is ignored."""
        if urgency is None:
            return
        self.read_bytes[_REASONS[urgency]] += result.bytes_read
        if urgency is not Urgency.FILL:
            self.usage.bytes_read += result.bytes_read
        elif result.error is not None and not self._has_told:
            self._has_told = True
            _LOG.warning("fill_failed", reason=result.error.message, effect="not tried again until a decoder attaches")

    def joined(self) -> None:
        """Notes that a decoder has attached, so that the next failed fill is logged again."""
        self._has_told = False
