"""What the brain counts."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from zipmoe.residency.pools import Phase, Pool
from zipmoe.residency.state import Residency
from zipmoe.types import Part


class Reason(enum.Enum):
    """Why a slot was taken from whoever held it."""

    NEED = "need"
    PREFETCH = "prefetch"
    PROMOTION = "promotion"
    FILL = "fill"

    __hash__ = object.__hash__  # see Residency


class Guess(enum.Enum):
    """What became of a guess that was fetched.

    USED: needed, and there in time. LATE: needed while it was under way. WASTED: not needed by its layer's next pass.
    """

    USED = "used"
    LATE = "late"
    WASTED = "wasted"


@dataclass(slots=True)
class Counters:
    """Totals since the start.

    Attributes:
        steps: by phase.
        tokens: of all steps of a phase.
        hits: experts that a pass through a layer could use without a read, by phase and by FULL or PACKED.
        misses: those for which something had to be read, by phase and by what was held: ABSENT, E_ONLY or SM_ONLY.
        reads: reads that were completed, whatever they were for, by what they read: E, SM or both.
        recoveries: tensors that were recovered.
        evictions: slots taken from experts, by pool and reason.
        guesses: what became of prefetched experts.
        promotions: PACKED experts that were recovered because they are used often.
    """

    steps: Counter[Phase] = field(default_factory=Counter)
    tokens: Counter[Phase] = field(default_factory=Counter)
    hits: Counter[tuple[Phase, Residency]] = field(default_factory=Counter)
    misses: Counter[tuple[Phase, Residency]] = field(default_factory=Counter)
    reads: Counter[Part] = field(default_factory=Counter)
    recoveries: int = 0
    evictions: Counter[tuple[Pool, Reason]] = field(default_factory=Counter)
    guesses: Counter[Guess] = field(default_factory=Counter)
    promotions: int = 0

    def missed(self, phase: Phase) -> int:
        """All misses of a phase."""
        return sum(self.misses[phase, held] for held in (Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY))
