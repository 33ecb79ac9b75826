"""Plans against exhaustive search over every assignment of states to experts."""

from __future__ import annotations

from itertools import combinations, product
from typing import ClassVar

import numpy as np
import pytest

from tests.planning.costs import MB, make_costs
from zipmoe.errors import BudgetInfeasible
from zipmoe.planning.cache_plan import SLOTS_OF, LayerPlan
from zipmoe.planning.conditional_poisson import Floats, fit_weights
from zipmoe.planning.costs import Costs, RowCost
from zipmoe.planning.knapsack import Integers, pareto_front
from zipmoe.planning.layer_options import cut_places, layer_options
from zipmoe.planning.layer_time import STATES, ExpertBytes, layer_seconds, seconds_table
from zipmoe.planning.plan import Planner, PlanRequest, transient_window
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.popularity import scale_to_sum
from zipmoe.residency.state import Residency

EXPERT = ExpertBytes(3 * MB, 9 * MB, 18 * MB)
SLOT_BYTES = PoolSizes(*EXPERT)
NO_WINDOW = PoolSizes(0, 0, 0)

FUSED = make_costs(packed_ffn=RowCost(1.5e-3, 0.0))
SLOW_RECOVERY = make_costs(recover_bytes_per_s=1e9)
FAST_DISK = make_costs(read_bytes_per_s=8e9)
GPU = make_costs(shares_cores=False, copy_bytes_per_s=20e9, full_ffn=RowCost(0.1e-3, 0.0))
COSTLY_READS = make_costs(packed_ffn=RowCost(1.5e-3, 0.0), read_latency_s=1e-3, read_overhead_s=0.3e-3)
MACHINES = {
    "fused": FUSED,
    "costly reads": COSTLY_READS,
    "slow recovery": SLOW_RECOVERY,
    "fast disk": FAST_DISK,
    "gpu": GPU,
}


def request(inclusion: list[Floats], costs: Costs) -> PlanRequest:
    return PlanRequest(inclusion, costs, EXPERT, SLOT_BYTES)


def assignments(experts: int) -> Integers:
    """Every way to give states to experts: shape (5 ** experts, experts), indices into STATES."""
    return np.array(list(product(range(len(STATES)), repeat=experts)))


def codes(plan: LayerPlan) -> Integers:
    return np.array([[STATES.index(state) for state in plan.residency]])


def expected_seconds(inclusion: Floats, states: Integers, costs: Costs) -> Floats:
    """The expected time of a layer for each assignment, summed over every set of experts that a step may choose."""
    weights = fit_weights(inclusion)
    sets = np.array(list(combinations(range(len(inclusion)), round(float(inclusion.sum())))))
    probability = weights[sets].prod(axis=1)
    counts = np.stack([(states[:, sets] == state).sum(axis=2) for state in range(len(STATES))], axis=-1)
    seconds: Floats = layer_seconds(counts, EXPERT, costs) @ (probability / probability.sum())
    return seconds


def nbytes(states: Integers) -> Integers:
    sizes = np.array([SLOTS_OF[state].nbytes(SLOT_BYTES) for state in STATES])
    total: Integers = sizes[states].sum(axis=1)
    return total


def popularity(seed: int, experts: int, chosen: int, spread: float = 1.0) -> Floats:
    return scale_to_sum(np.exp(np.random.default_rng(seed).normal(0, spread, size=experts)), chosen)


class TestLayerOptions:
    @pytest.mark.parametrize("costs", MACHINES.values(), ids=MACHINES)
    def test_expected_times_are_those_over_all_sets(self, costs: Costs) -> None:
        inclusion = np.sort(popularity(1, 6, 3))[::-1]
        options = layer_options(fit_weights(inclusion), inclusion, seconds_table(3, EXPERT, costs), cut_places(6))
        assert len(options.seconds) == 210  # ways to cut six experts into five runs
        cut = [np.repeat(np.arange(5), [*counts, 6 - counts.sum()]) for counts in options.counts]
        np.testing.assert_allclose(options.seconds, expected_seconds(inclusion, np.array(cut), costs), rtol=1e-7)
        for states, hits in zip(cut, options.hits, strict=True):
            np.testing.assert_allclose(hits, [inclusion[states == state].sum() for state in range(5)], atol=1e-12)

    def test_many_experts_are_cut_more_finely_where_they_are_popular(self) -> None:
        places = cut_places(60)
        assert (places[0], places[-1], len(places)) == (0, 60, 12)
        assert np.diff(places)[0] < np.diff(places)[-1]


class TestAgainstExhaustiveSearch:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("machine", sorted(MACHINES))
    def test_one_layer(self, machine: str, seed: int) -> None:
        """All 5^5 assignments of states to experts, in the order of popularity or not."""
        costs = MACHINES[machine]
        inclusion = popularity(seed, 5, 2)
        states = assignments(5)
        seconds, sizes = expected_seconds(inclusion, states, costs), nbytes(states)
        planner = Planner(request([inclusion], costs))
        for megabytes in range(0, 91, 5):
            plan = planner.plan(megabytes * MB, NO_WINDOW)
            assert plan.nbytes <= megabytes * MB
            assert plan.seconds == pytest.approx(float(expected_seconds(inclusion, codes(plan.layers[0]), costs)[0]))
            best = float(seconds[sizes <= megabytes * MB].min())
            assert plan.seconds <= best * 1.001

    @pytest.mark.parametrize("machine", sorted(MACHINES))
    def test_two_layers_share_one_budget(self, machine: str) -> None:
        """All pairs of 5^4 assignments; one layer is used evenly, the other is not."""
        costs = MACHINES[machine]
        inclusions = [popularity(0, 4, 2, spread=0.1), popularity(1, 4, 2, spread=2.0)]
        states = assignments(4)
        sizes = nbytes(states)
        seconds = [expected_seconds(inclusion, states, costs) for inclusion in inclusions]
        fronts = [pareto_front(sizes, each) for each in seconds]
        pairs = np.add.outer(seconds[0][fronts[0]], seconds[1][fronts[1]])
        both = np.add.outer(sizes[fronts[0]], sizes[fronts[1]])
        planner = Planner(request(inclusions, costs))
        for megabytes in range(0, 145, 9):
            plan = planner.plan(megabytes * MB, NO_WINDOW)
            assert plan.nbytes <= megabytes * MB
            # Bytes are counted in 8192nds of the budget, rounded up.
            assert plan.seconds <= float(pairs[both <= megabytes * MB * 0.999].min(initial=np.inf)) * 1.001
            assert plan.seconds >= float(pairs[both <= megabytes * MB].min()) * 0.999


class TestManyExperts:
    INCLUSION: ClassVar = [popularity(seed, 60, 4, spread=0.3 * seed) for seed in range(4)]

    @pytest.mark.parametrize("machine", sorted(MACHINES))
    def test_more_memory_never_costs_time_and_a_step_never_reads_more(self, machine: str) -> None:
        planner = Planner(request(self.INCLUSION, MACHINES[machine]))
        plans = [planner.plan(percent * 240 * EXPERT.tensor // 100, NO_WINDOW) for percent in range(0, 101, 10)]
        seconds = [plan.seconds for plan in plans]
        assert seconds == sorted(seconds, reverse=True)
        assert plans[0].hit_rates[Residency.ABSENT] == pytest.approx(1)
        assert plans[0].read_bytes == pytest.approx(4 * 4 * 12 * MB)
        assert plans[-1].read_bytes == pytest.approx(0)

    def test_slots_hold_the_residents_and_the_window(self) -> None:
        plan = Planner(request(self.INCLUSION, SLOW_RECOVERY)).plan(2000 * MB, PoolSizes(8, 8, 7))
        assert plan.nbytes == plan.slots.nbytes(SLOT_BYTES) <= 2000 * MB
        held = [SLOTS_OF[state] for layer in plan.layers for state in layer.residency]
        e_slots, sm_slots, tensor_slots = (sum(column) for column in zip(*held, strict=True))
        assert plan.slots == (e_slots + 8, sm_slots + 8, tensor_slots + 7)
        assert sum(plan.expert_counts.values()) == 240
        assert sum(plan.hit_rates.values()) == pytest.approx(1)

    def test_the_window_takes_two_layers_misses_or_of_a_small_budget_one_layers(self) -> None:
        recovering = request(self.INCLUSION, SLOW_RECOVERY)
        assert transient_window(recovering, 8 * 30 * MB * 4) == (8, 8, 8)
        assert transient_window(recovering, 8 * 30 * MB * 4 - 1) == (4, 4, 4)

    def test_tensor_slots_are_needed_on_the_way_only_where_experts_are_recovered(self) -> None:
        assert transient_window(request(self.INCLUSION, FUSED), 1000 * MB) == (8, 8, 0)

    def test_no_pool_has_more_slots_than_there_are_experts(self) -> None:
        planner = Planner(request(self.INCLUSION, FUSED))
        assert max(planner.plan(100_000 * MB, PoolSizes(8, 8, 0)).slots) <= 240

    def test_what_is_left_when_every_expert_is_recovered_goes_to_chunks(self) -> None:
        planner = Planner(request(self.INCLUSION, GPU))
        all_full = 240 * SLOT_BYTES.tensor
        window = PoolSizes(8, 8, 0)
        tight = planner.plan(all_full + window.nbytes(SLOT_BYTES), window).slots
        assert tight == PoolSizes(8, 8, 240)
        both = PoolSizes(1, 1, 0).nbytes(SLOT_BYTES)
        assert planner.plan(tight.nbytes(SLOT_BYTES) + 50 * both + 1, window).slots == PoolSizes(58, 58, 240)
        assert planner.plan(100_000 * MB, window).slots == PoolSizes(240, 240, 240)

    def test_a_budget_below_the_window_is_refused_and_the_smallest_is_named(self) -> None:
        planner = Planner(request(self.INCLUSION, FUSED))
        with pytest.raises(BudgetInfeasible) as refused:
            planner.plan(95 * MB, PoolSizes(8, 8, 0))
        assert refused.value.smallest_bytes == 96 * MB
        assert planner.plan(96 * MB, PoolSizes(8, 8, 0)).hit_rates[Residency.ABSENT] == pytest.approx(1)

    def test_the_popular_experts_hold_the_most(self) -> None:
        plan = Planner(request(self.INCLUSION, FUSED)).plan(1200 * MB, NO_WINDOW)
        for inclusion, layer in zip(self.INCLUSION, plan.layers, strict=True):
            ranks = [STATES.index(layer.residency[expert]) for expert in np.argsort(-inclusion, kind="stable")]
            assert ranks == sorted(ranks)

    def test_a_layer_that_is_used_unevenly_leaves_memory_to_the_others(self) -> None:
        plan = Planner(request(self.INCLUSION, FUSED)).plan(1200 * MB, NO_WINDOW)
        held = [sum(nbytes(codes(layer))) for layer in plan.layers]
        assert held[0] > 1.1 * held[3]

    def test_planning_again_gives_the_same(self) -> None:
        first, second = (Planner(request(self.INCLUSION, GPU)).plan(1500 * MB, NO_WINDOW) for _ in range(2))
        assert first == second

    def test_batches_that_use_many_experts_are_planned_in_groups(self) -> None:
        few, many = (
            Planner(request([popularity(0, 60, chosen)], FUSED)).plan(400 * MB, NO_WINDOW) for chosen in (16, 48)
        )
        assert sum(many.layers[0].hits.values()) == pytest.approx(48)
        assert many.seconds > 2 * few.seconds


def test_the_dearer_a_read_the_fewer_experts_are_held_by_halves() -> None:
    """Halves of more experts save as many bytes as whole ones, but every one of them has to be read."""
    even = np.full(12, 3 / 12)

    def halves(overhead_s: float) -> int:
        costs = make_costs(packed_ffn=RowCost(1.5e-3, 0.0), read_overhead_s=overhead_s)
        plan = Planner(request([even] * 2, costs)).plan(12 * (EXPERT.e + EXPERT.sm), NO_WINDOW)
        return plan.expert_counts[Residency.SM_ONLY] + plan.expert_counts[Residency.E_ONLY]

    counts = [halves(overhead_s) for overhead_s in (0.0, 0.3e-3, 3e-3)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
