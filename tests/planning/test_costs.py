from __future__ import annotations

from typing import Any

import pytest

from tests.planning.costs import MB, make_costs
from zipmoe.errors import InvalidRequest
from zipmoe.planning.costs import RowCost
from zipmoe.residency.state import Residency


def test_a_read_costs_its_latency_and_its_bytes_and_no_bytes_cost_nothing() -> None:
    costs = make_costs(read_latency_s=0.002, read_overhead_s=0.0005)
    assert costs.read_s(3 * MB) == pytest.approx(0.0055)
    assert costs.queued_read_s(3 * MB) == pytest.approx(0.0035)
    assert costs.channel_s(3 * MB) == pytest.approx(0.003)
    assert costs.read_s(0) == costs.queued_read_s(0) == 0.0


def test_recovery_and_copy_are_by_the_byte() -> None:
    assert make_costs().recover_s(17 * MB) == pytest.approx(0.017)
    assert make_costs().copy_s(17 * MB) == 0.0
    assert make_costs(copy_bytes_per_s=1e10).copy_s(10 * MB) == pytest.approx(0.001)


def test_further_rows_cost_their_slope() -> None:
    assert make_costs().ffn_s(Residency.FULL, 1) == pytest.approx(1e-3)
    assert make_costs().ffn_s(Residency.FULL, 5) == pytest.approx(3e-3)


def test_packed_experts_are_computed_only_where_there_is_a_kernel() -> None:
    fused = make_costs(packed_ffn=RowCost(2e-3, 0.0))
    assert fused.ffn_s(Residency.PACKED, 1) == 2e-3
    with pytest.raises(InvalidRequest, match="form packed"):
        make_costs().ffn_s(Residency.PACKED, 1)
    with pytest.raises(InvalidRequest, match="form sm_only"):
        fused.ffn_s(Residency.SM_ONLY, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"read_bytes_per_s": 0},
        {"read_bytes_per_s": float("nan")},
        {"read_latency_s": -1.0},
        {"read_overhead_s": -1.0},
        {"recover_bytes_per_s": "fast"},
        {"worker_count": 0},
        {"worker_count": "two"},
    ],
)
def test_what_no_measurement_gives_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        make_costs(**change)


@pytest.mark.parametrize("seconds", [True, -1.0, float("inf")])
def test_a_row_cost_that_no_measurement_gives_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest):
        RowCost(seconds, 0.0)
