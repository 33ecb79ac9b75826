"""A router that says on stdout when it waits for the rest of an expert whose first tensor it has computed with."""

from __future__ import annotations

import sys

from zipmoe.services.router.__main__ import main
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.types import ExpertKey

BEGUN = "an expert is begun"
_complete = ArenaExperts._complete


def complete(experts: ArenaExperts, key: ExpertKey) -> None:
    """Waits, having said so."""
    print(BEGUN, flush=True)
    _complete(experts, key)


if __name__ == "__main__":
    ArenaExperts._complete = complete  # type: ignore[method-assign]
    sys.exit(main())
