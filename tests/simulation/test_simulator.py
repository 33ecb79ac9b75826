from __future__ import annotations

import pytest

from tests.planning.costs import make_costs
from zipmoe.errors import InvalidRequest
from zipmoe.planning.costs import RowCost
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.pools import Grid, Operations, Phase, Read, Recover, Urgency
from zipmoe.simulation.simulated_machine import SimulatedMachine
from zipmoe.simulation.simulator import ReplaySetup, simulate, simulated_policy_names
from zipmoe.simulation.trace import RoutedPass
from zipmoe.simulation.workload import Workload, generate
from zipmoe.types import ExpertKey, Part, SlotRef

MB = 10**6
EXPERT = ExpertBytes(e=2 * MB, sm=8 * MB, tensor=16 * MB)  # read 10 ms, recovered 8 ms by both workers of `make_costs`
SLOT = SlotRef("a", 1, 0, 1)


def read(number: int, expert: int, urgency: Urgency = Urgency.NEEDED, parts: Part = Part.ALL) -> Read:
    return Read(number, ExpertKey(0, expert), parts, SLOT, SLOT, urgency)


def recover(number: int, expert: int, urgency: Urgency = Urgency.NEEDED) -> Recover:
    return Recover(number, ExpertKey(0, expert), SLOT, SLOT, SLOT, urgency)


def finished(machine: SimulatedMachine) -> list[int]:
    return [number for number, _ in machine.take_finished()]


def test_reads_queue_at_the_channel_and_needed_ones_overtake_prefetches() -> None:
    machine = SimulatedMachine(make_costs(), EXPERT)
    machine.submit(Operations(reads=[read(1, 1, Urgency.PREFETCH), read(2, 2, Urgency.PREFETCH)]))
    machine.compute(0.005)
    machine.submit(Operations(reads=[read(3, 3, parts=Part.E), read(4, 4, parts=Part.SM)]))
    machine.compute(0.007)
    assert finished(machine) == [1, 3]
    machine.wait()
    assert (finished(machine), machine.now_s) == ([4], pytest.approx(0.020))
    machine.wait()
    assert (finished(machine), machine.now_s) == ([2], pytest.approx(0.030))
    assert machine.bytes_read == 30 * MB


def test_latency_delays_a_read_and_does_not_occupy_the_channel() -> None:
    machine = SimulatedMachine(make_costs(read_latency_s=0.004), EXPERT)
    machine.submit(Operations(reads=[read(1, 1), read(2, 2)]))
    machine.wait()
    assert machine.now_s == pytest.approx(0.014)
    machine.wait() if finished(machine) == [1] else None
    assert machine.now_s == pytest.approx(0.024)


def test_a_recovery_waits_for_its_read_and_rests_while_the_model_computes_on_the_same_cores() -> None:
    for shares_cores, ends_s in ((True, 0.023), (False, 0.018)):
        machine = SimulatedMachine(make_costs(shares_cores=shares_cores), EXPERT)
        machine.submit(Operations(reads=[read(1, 1)], recoveries=[recover(2, 1)]))
        machine.wait()
        assert finished(machine) == [1]
        machine.compute(0.005)
        machine.wait()
        assert (finished(machine), machine.now_s) == ([2], pytest.approx(ends_s))


def test_a_cancelled_read_that_has_not_begun_fails_and_reads_nothing() -> None:
    machine = SimulatedMachine(make_costs(), EXPERT)
    machine.submit(Operations(reads=[read(1, 1), read(2, 2)]))
    machine.compute(0.001)
    machine.submit(Operations(cancels=[1, 2]))
    machine.compute(0.1)
    assert [(number, error is None) for number, error in machine.take_finished()] == [(1, True), (2, False)]
    assert machine.bytes_read == 10 * MB


def decode(*steps: list[int]) -> list[RoutedPass]:
    return [RoutedPass(step, 0, Phase.DECODE, tuple(experts), 1) for step, experts in enumerate(steps)]


def setup_for(slots: int, **costs: object) -> ReplaySetup:
    values: dict[str, object] = {"packed_ffn": RowCost(2e-3, 1e-3), "dense": RowCost(1e-3, 0.0), **costs}
    return ReplaySetup(Grid(1, 8), PoolSizes(slots, slots, 0), make_costs(**values), EXPERT)


def test_a_step_takes_what_is_computed_and_what_is_waited_for() -> None:
    outcome = simulate(decode([0, 1], [0, 1], [0, 2]), "lru", setup_for(4))
    assert (outcome.misses, outcome.bytes_read, outcome.step_misses) == (3, 30 * MB, (2, 0, 1))
    # 1 dense + 10 read + 10 read beside 2 FFN + 2 FFN; 1 + 2 + 2; 1 + 10 read beside 2 FFN + 2 FFN
    assert outcome.tpot_s == pytest.approx((0.023 + 0.005 + 0.013) / 3)
    assert outcome.stall_s == pytest.approx(0.010 + 0.008 + 0.008)


def test_without_a_kernel_for_chunks_experts_are_recovered() -> None:
    setup = setup_for(4, packed_ffn=None)
    setup = ReplaySetup(setup.grid, PoolSizes(2, 2, 4), setup.costs, EXPERT)
    outcome = simulate(decode([0], [0]), "lru", setup)
    assert outcome.tpot_s == pytest.approx((0.001 + 0.010 + 0.008 + 0.001 + 0.002) / 2)


def test_prefills_are_counted_apart() -> None:
    prefill = RoutedPass(0, 0, Phase.PREFILL, (0, 1, 2), 64)
    outcome = simulate([prefill, *(routed._replace(step=1) for routed in decode([0, 3]))], "adaptive", setup_for(8))
    assert (outcome.prefill_misses, outcome.misses, outcome.bytes_read) == (3, 1, 10 * MB)


@pytest.mark.parametrize("scheduler", ["block", "fifo"])
def test_every_policy_replays_the_same_trace_and_none_misses_less_than_belady(scheduler: str) -> None:
    trace = list(generate(Workload("zipf", steps=60, grid=Grid(2, 20))))
    setup = ReplaySetup(Grid(2, 20), PoolSizes(10, 10, 0), setup_for(1).costs, EXPERT, scheduler=scheduler)
    misses = {name: simulate(trace, name, setup).misses for name in simulated_policy_names()}
    assert min(misses, key=lambda name: misses[name]) == "belady"
    assert simulate(trace, "marking", setup).misses == misses["marking"]


def test_more_slots_never_mean_more_misses_for_belady() -> None:
    trace = list(generate(Workload("uniform", steps=60, grid=Grid(2, 20))))
    misses = [
        simulate(
            trace, "belady", ReplaySetup(Grid(2, 20), PoolSizes(count, count, 0), setup_for(1).costs, EXPERT)
        ).misses
        for count in (6, 12, 24, 40)
    ]
    assert misses == sorted(misses, reverse=True)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no policy 'best'"):
        simulate(decode([0]), "best", setup_for(2))
    with pytest.raises(InvalidRequest, match="no scheduler 'best'"):
        simulate(
            decode([0]), "lru", ReplaySetup(Grid(1, 8), PoolSizes(2, 2, 0), make_costs(), EXPERT, scheduler="best")
        )


@pytest.mark.parametrize("policy", simulated_policy_names())
def test_where_nearly_all_memory_is_tensor_slots_experts_get_there_although_they_are_computed_from_chunks(
    policy: str,
) -> None:
    grid = Grid(2, 30)
    passes = list(generate(Workload("prompt-local", 200, grid=grid)))
    fused = make_costs(packed_ffn=RowCost(2e-3, 0.0))
    enough = simulate(passes, policy, ReplaySetup(grid, PoolSizes(8, 8, grid.size), fused, EXPERT))
    assert enough.misses == len({(routed.layer, expert) for routed in passes for expert in routed.experts})
    for slots in (PoolSizes(8, 8, 30), PoolSizes(16, 16, 30)):
        fresh = simulate(passes, policy, ReplaySetup(grid, slots, fused, EXPERT))
        recovered = simulate(passes, policy, ReplaySetup(grid, slots, make_costs(), EXPERT))
        assert fresh.misses < 1.1 * recovered.misses
