"""Makespans of a layer against a step-by-step schedule of every order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.planning.costs import MB, make_costs
from zipmoe.planning.costs import RowCost
from zipmoe.planning.layer_time import STATES, ExpertBytes, Stages, layer_seconds, seconds_table, stages
from zipmoe.residency.state import Residency

EXPERT = ExpertBytes(3 * MB, 9 * MB, 18 * MB)


def flow_shop(jobs: Sequence[Stages]) -> float:
    """The makespan of jobs in this order, by the formula of the module."""
    return max(
        (
            sum(job.read_s for job in jobs[: u + 1])
            + sum(job.recover_s for job in jobs[u : v + 1])
            + sum(job.compute_s for job in jobs[v:])
            for u in range(len(jobs))
            for v in range(u, len(jobs))
        ),
        default=0.0,
    )


def jobs_of(counts: Sequence[int], needs: Sequence[Stages]) -> list[Stages]:
    return [need for need, count in zip(needs, counts, strict=True) for _ in range(count)]


ms = st.floats(0.1, 20)
count_lists = st.lists(st.integers(0, 2), min_size=5, max_size=5)


@given(count_lists, ms, ms, ms, st.booleans(), st.booleans())
def test_it_is_the_makespan_of_the_flow_shop(
    counts: list[int], disk_ms: float, recover_ms: float, ffn_ms: float, fused: bool, shares_cores: bool
) -> None:
    costs = make_costs(
        read_bytes_per_s=EXPERT.e / disk_ms * 1e3,
        recover_bytes_per_s=EXPERT.tensor / recover_ms * 1e3,
        full_ffn=RowCost(ffn_ms / 1e3, 0.0),
        packed_ffn=RowCost(1.5 * ffn_ms / 1e3, 0.0) if fused else None,
        shares_cores=shares_cores,
    )
    needs = [stages(state, EXPERT, costs) for state in STATES]
    jobs = sorted(jobs_of(counts, needs), key=lambda job: job.read_s)
    # A FULL expert does not wait for the recovery of a PACKED one, as a job of a flow shop would.
    jobs.sort(key=lambda job: job.read_s + job.recover_s > 0)
    assert layer_seconds(np.array(counts), EXPERT, costs) == pytest.approx(flow_shop(jobs))


@given(st.lists(st.integers(0, 1), min_size=5, max_size=5), ms, ms)
def test_no_order_is_faster_on_one_channel_and_one_computer(counts: list[int], disk_ms: float, ffn_ms: float) -> None:
    costs = make_costs(
        read_bytes_per_s=EXPERT.e / disk_ms * 1e3,
        full_ffn=RowCost(ffn_ms / 1e3, 0.0),
        packed_ffn=RowCost(1.3 * ffn_ms / 1e3, 0.0),
    )
    jobs = jobs_of(counts, [stages(state, EXPERT, costs) for state in STATES])
    best = min((flow_shop(order) for order in permutations(jobs)), default=0.0)
    assert layer_seconds(np.array(counts), EXPERT, costs) == pytest.approx(best)


@pytest.mark.parametrize(
    ("state", "read_ms"),
    [
        (Residency.FULL, 0),
        (Residency.PACKED, 0),
        (Residency.SM_ONLY, 3),
        (Residency.E_ONLY, 9),
        (Residency.ABSENT, 12),
    ],
)
def test_an_expert_reads_what_it_lacks_and_recovers_unless_it_is_full(state: Residency, read_ms: float) -> None:
    need = stages(state, EXPERT, make_costs(shares_cores=False))
    assert need.read_s == pytest.approx(read_ms / 1e3)
    assert need.recover_s == pytest.approx(0 if state is Residency.FULL else 9e-3)  # 18 MB over two workers of 1 GB/s
    assert need.compute_s == pytest.approx(1e-3)


def test_recovery_and_ffn_on_the_same_cores_follow_each_other() -> None:
    assert stages(Residency.PACKED, EXPERT, make_costs()) == pytest.approx((0.0, 0.0, 10e-3))


def test_with_a_fused_kernel_nothing_is_recovered() -> None:
    costs = make_costs(packed_ffn=RowCost(2e-3, 1e-3))
    assert stages(Residency.PACKED, EXPERT, costs, rows=3) == pytest.approx((0.0, 0.0, 4e-3))


def test_an_expert_is_copied_to_a_device_while_the_one_before_is_computed() -> None:
    costs = make_costs(copy_bytes_per_s=6e9, shares_cores=False)
    assert stages(Residency.FULL, EXPERT, costs).compute_s == pytest.approx(3e-3)


def test_resident_experts_are_computed_while_others_load() -> None:
    costs = make_costs(packed_ffn=RowCost(1e-3, 0.0))
    one_full_one_absent = np.array([1, 0, 0, 0, 1])
    assert layer_seconds(one_full_one_absent, EXPERT, costs) == pytest.approx(12e-3 + 1e-3)
    assert layer_seconds(np.array([8, 0, 0, 0, 1]), EXPERT, make_costs(read_bytes_per_s=12e9)) == pytest.approx(18e-3)


def test_the_latency_of_the_disk_is_paid_once_a_layer_and_only_with_reads() -> None:
    costs = make_costs(packed_ffn=RowCost(1e-3, 0.0), read_latency_s=5e-3)
    assert layer_seconds(np.array([0, 0, 0, 0, 2]), EXPERT, costs) == pytest.approx(5e-3 + 24e-3 + 1e-3)
    assert layer_seconds(np.array([1, 1, 0, 0, 0]), EXPERT, costs) == pytest.approx(2e-3)


def test_the_table_has_every_combination_and_the_rest_is_absent() -> None:
    costs = make_costs()
    table = seconds_table(3, EXPERT, costs)
    assert table.shape == (4, 4, 4, 4)
    assert table[1, 0, 1, 0] == layer_seconds(np.array([1, 0, 1, 0, 1]), EXPERT, costs)
    assert table[2, 2, 0, 0] == 0.0
