"""Counters of the brain: steps, hits, misses, reads, recoveries, evictions and prefetches."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from zipmoe.residency.pools import Phase, Pool
from zipmoe.residency.state import Residency
from zipmoe.types import Part


class Reason(enum.Enum):
    """Purpose for which a slot is assigned, and so the reason for an eviction."""

    NEED = "need"
    PREFETCH = "prefetch"
    PROMOTION = "promotion"
    FILL = "fill"

    __hash__ = object.__hash__  # see Residency


class GuessOutcome(enum.Enum):
    """Outcome of a guess, which is a speculative prefetch.

    USED: the expert was needed and had arrived. LATE: the expert was needed while its fetch was under way. WASTED: the
    next pass through the layer did not need the expert.
    """

    USED = "used"
    LATE = "late"
    WASTED = "wasted"


@dataclass(slots=True)
class Counters:
    """Totals since the start.

    Attributes:
        steps: steps by phase.
        tokens: tokens of all steps, by phase.
        hits: experts that a pass through a layer could use without a read, by phase and by state (FULL or PACKED).
        misses: experts with a chunk missing in a pass through a layer, by phase and by state (ABSENT, E_ONLY, SM_ONLY).
        reads: completed reads of any urgency, by the parts that were read (E, SM or both).
        recoveries: experts that were recovered.
        evictions: evicted slots, by pool and reason.
        guesses: settled guesses, by outcome.
        promotions: background recoveries of PACKED experts that a step used.
    """

    steps: Counter[Phase] = field(default_factory=Counter)
    tokens: Counter[Phase] = field(default_factory=Counter)
    hits: Counter[tuple[Phase, Residency]] = field(default_factory=Counter)
    misses: Counter[tuple[Phase, Residency]] = field(default_factory=Counter)
    reads: Counter[Part] = field(default_factory=Counter)
    recoveries: int = 0
    evictions: Counter[tuple[Pool, Reason]] = field(default_factory=Counter)
    guesses: Counter[GuessOutcome] = field(default_factory=Counter)
    promotions: int = 0

    def missed(self, phase: Phase) -> int:
        """Counts all misses of a phase."""
        return sum(self.misses[phase, held] for held in (Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY))
