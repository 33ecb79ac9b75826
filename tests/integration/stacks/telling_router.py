"""A router that says on stdout when it waits for the rest of an expert whose first tensor it has computed with."""

from __future__ import annotations

import sys

from zipmoe.services.router.__main__ import main
from zipmoe.services.router.experts.layer_arrivals import LayerArrivals

BEGUN = "an expert is begun"
_await_rest = LayerArrivals._await_rest


def await_rest(arrivals: LayerArrivals) -> None:
    """Waits, having said so."""
    print(BEGUN, flush=True)
    _await_rest(arrivals)


if __name__ == "__main__":
    LayerArrivals._await_rest = await_rest  # type: ignore[method-assign]
    sys.exit(main())
