from __future__ import annotations

from collections import Counter

from prometheus_client import CollectorRegistry

from services.router.metrics import ResidentCounts, RouterMetrics
from zipmoe.residency.state import Residency


def test_experts_of_each_layer_are_counted_by_state_when_somebody_asks() -> None:
    registry = CollectorRegistry()
    counts: ResidentCounts = Counter()
    RouterMetrics(registry).show_residency([4, 6], lambda: counts)

    def of_layer(layer: int) -> dict[str, float | None]:
        name = "zipmoe_experts_resident"
        labels = [state.value for state in Residency]
        return {state: registry.get_sample_value(name, {"layer": str(layer), "state": state}) for state in labels}

    nothing = {"absent": 4, "e_only": 0, "sm_only": 0, "packed": 0, "full": 0}
    assert of_layer(0) == nothing
    counts.update({(0, Residency.FULL): 1, (1, Residency.PACKED): 2, (1, Residency.E_ONLY): 3})
    assert of_layer(0) == {**nothing, "absent": 3, "full": 1}
    assert of_layer(1) == {**nothing, "absent": 1, "packed": 2, "e_only": 3}
