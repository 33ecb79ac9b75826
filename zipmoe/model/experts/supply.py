"""Takes the experts of a layer pass from the provider, and brings their matrices to the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from zipmoe.errors import InternalError
from zipmoe.model.experts.device import ExpertPlacement
from zipmoe.model.experts.provider import Arrival, ExpertProvider


@dataclass(frozen=True)
class ExpertSupply:
    """Source of all experts of a model.

    Attributes:
        provider: source of the experts.
        placement: transfer of an expert's matrices to the device that computes.
    """

    provider: ExpertProvider
    placement: ExpertPlacement

    def fetch(
        self, layer: int, rows: Mapping[int, int], beside: Callable[[], None], serve: Callable[[Arrival], None]
    ) -> None:
        """Asks the provider for the experts of a layer pass and serves each of them as it arrives.

        Args:
            layer: ordinal of the MoE layer.
            rows: number of rows routed to each expert.
            beside: called once, after the experts have been asked for and before the first is served.
            serve: called with each expert, in the order of arrival.

        Raises:
            ZipMoeError: error of the provider, or of `beside` or `serve`.
        """
        awaited = set(rows)
        with closing(self.provider.experts(layer, {expert: rows[expert] for expert in sorted(rows)})) as arrivals:
            try:
                beside()
                for arrival in arrivals:
                    if arrival.expert not in awaited:
                        given = f"expert {arrival.expert} of MoE layer {layer}"
                        raise InternalError(f"the provider gave {given} without need")
                    awaited.remove(arrival.expert)
                    serve(arrival)
            finally:
                self.placement.settle()
        if awaited:
            raise InternalError(f"the provider left out experts {sorted(awaited)} of MoE layer {layer}")
