"""What each policy loses first, and what that makes of known workloads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planning.costs import make_costs
from zipmoe.errors import InvalidRequest
from zipmoe.planning.costs import RowCost
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.residency.policies.base import Policy, lowest
from zipmoe.residency.policies.belady import BeladyPolicy
from zipmoe.residency.policies.registry import DEFAULT_POLICY, create_policy, policy_names
from zipmoe.residency.pools import Grid, Phase, Pool
from zipmoe.simulation.simulator import ReplaySetup, simulate
from zipmoe.simulation.workload import Workload, generate

GRID = Grid(2, 4)
OTHERS = [name for name in policy_names() if name != DEFAULT_POLICY]


def use(policy: Policy, *passes: tuple[int, list[int]], phase: Phase = Phase.DECODE) -> None:
    for layer, experts in passes:
        policy.used(layer, dict.fromkeys(experts, 1), phase)


def victims(policy: Policy, candidates: list[int], count: int) -> list[int]:
    mask = np.zeros(GRID.size, bool)
    mask[candidates] = True
    return policy.victims(Pool.E, mask, count)


def test_ours_is_the_default_and_all_that_were_asked_for_are_there() -> None:
    assert policy_names() == ("adaptive", "zipmoe", "lru", "lfu", "fifo", "marking")
    assert DEFAULT_POLICY == "adaptive"


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="no policy 'belady', only adaptive, zipmoe, lru, lfu, fifo, marking"):
        create_policy("belady", GRID)


@pytest.mark.parametrize("name", policy_names())
def test_victims_are_candidates_each_once_and_as_many_as_there_are(name: str) -> None:
    policy = create_policy(name, GRID)
    use(policy, (0, [0, 1]), (1, [0, 2]), (0, [1, 3]))
    for count in (1, 3, 9, 20):
        for candidates in ([], [5], [0, 1, 3], list(range(8))):
            chosen = victims(policy, candidates, count)
            assert len(chosen) == len(set(chosen)) == min(count, len(candidates))
            assert set(chosen) <= set(candidates)


@pytest.mark.parametrize("name", policy_names())
def test_the_same_seed_and_events_give_the_same_victims(name: str) -> None:
    first, second = (create_policy(name, GRID, seed=3) for _ in range(2))
    for policy in (first, second):
        use(policy, *((layer, [layer, step % 4]) for step in range(9) for layer in range(2) if step % 4 != layer))
    assert victims(first, list(range(8)), 8) == victims(second, list(range(8)), 8)


def test_lru_loses_who_was_used_least_recently() -> None:
    policy = create_policy("lru", GRID)
    use(policy, (0, [0]), (1, [1]), (0, [2]), (0, [0]))
    assert victims(policy, [0, 2, 5], 3) == [5, 2, 0]


def test_lfu_loses_who_was_used_least_often_and_remembers_who_is_not_resident() -> None:
    policy = create_policy("lfu", GRID)
    use(policy, (0, [0]), (0, [0]), (1, [1]), (0, [2]))
    assert victims(policy, [0, 2, 5], 3) == [5, 2, 0]


def test_fifo_loses_who_was_placed_first_however_often_it_is_used() -> None:
    policy = create_policy("fifo", GRID)
    for index in (3, 0, 5):
        policy.placed(Pool.E, index)
    use(policy, (0, [3]))
    assert victims(policy, [0, 3, 5], 3) == [3, 0, 5]


def test_marking_loses_unmarked_ones_and_starts_over_when_all_are_marked() -> None:
    policy = create_policy("marking", GRID)
    use(policy, (0, [0, 1]), (1, [0]))
    assert victims(policy, [0, 1, 3, 4], 1) == [3]
    assert victims(policy, [0, 1, 4], 1)[0] in (0, 1, 4)
    use(policy, (0, [0]))
    assert 0 not in victims(policy, [0, 1, 4], 2)


def test_the_papers_policy_compares_ranks_within_layers() -> None:
    policy = create_policy("zipmoe", GRID)
    # Layer 1 is used more often; its second most popular expert is still only second.
    use(policy, (0, [0]), *[(1, [0, 1])] * 5, (1, [0]))
    assert victims(policy, [0, 5], 1) == [5]


def test_belady_loses_who_is_needed_last() -> None:
    passes = [(0, [0, 1, 2], Phase.DECODE), (1, [0], Phase.DECODE), (0, [1], Phase.DECODE), (0, [0], Phase.DECODE)]
    policy = BeladyPolicy(GRID, passes)
    policy.used(0, dict.fromkeys([0, 1, 2], 1), Phase.DECODE)
    assert victims(policy, [0, 1, 2], 3) == [2, 0, 1]


def test_ours_tells_equals_apart_by_how_soon_their_layer_comes() -> None:
    policy = create_policy("adaptive", Grid(2, 4))
    use(policy, *[(layer, [step % 4]) for step in range(8) for layer in range(2)], (0, [0]))
    first, second = victims(policy, [1, 5], 2)
    assert (first, second) == (1, 5), "layer 0 has just been passed, layer 1 comes next"


def test_ours_keeps_what_is_popular() -> None:
    policy = create_policy("adaptive", GRID)
    use(policy, *[(layer, [0, 1 + step % 3]) for step in range(12) for layer in range(2)])
    assert victims(policy, list(range(4)), 4)[-1] == 0


def test_only_ours_refuses_slots_and_only_to_prefills() -> None:
    for name in policy_names():
        policy = create_policy(name, GRID)
        use(policy, *[(layer, [0, 1]) for _ in range(5) for layer in range(2)])
        assert not policy.selective
        use(policy, (0, [0, 1, 2, 3]), phase=Phase.PREFILL)
        assert policy.selective is (name == "adaptive")
        assert policy.admits(Pool.E, 3, 0) is (name != "adaptive")
        assert policy.admits(Pool.E, 0, 3)


def test_many_lowest_are_the_same_as_one_after_the_other() -> None:
    values = np.random.default_rng(0).random(50)
    candidates = np.arange(50) % 3 > 0
    assert lowest(values, candidates, 30) == [i for i in np.argsort(values).tolist() if candidates[i]][:30]
    assert lowest(values, candidates, 5) == lowest(values, candidates, 30)[:5]


def misses(workload: Workload, capacity: float, names: list[str]) -> dict[str, int]:
    count = round(capacity * workload.grid.size)
    costs = make_costs(packed_ffn=RowCost(1e-3, 1e-3))
    setup = ReplaySetup(workload.grid, PoolSizes(count, count, 0), costs, ExpertBytes(3, 9, 18))
    passes = list(generate(workload))
    return {name: simulate(passes, name, setup).misses for name in names}


@pytest.mark.parametrize(
    ("name", "ratio"), [("uniform", 1.02), ("zipf", 1.02), ("shifting", 1.02), ("prompt-local", 0.9)]
)
def test_ours_misses_no_more_than_the_best_of_the_others(name: str, ratio: float) -> None:
    """Short runs of few layers; `zipmoe simulate --generate` gives the figures at length."""
    found = misses(Workload(name, steps=500, grid=Grid(4, 60)), 0.5, [DEFAULT_POLICY, *OTHERS, "belady"])
    best = min(found[other] for other in OTHERS)
    assert found["belady"] < found[DEFAULT_POLICY] <= ratio * best, found


@pytest.mark.parametrize("capacity", [0.25, 0.5, 0.75])
def test_prefills_between_decode_steps_cost_no_decode_misses(capacity: float) -> None:
    plain = Workload("prompt-local", steps=300, grid=Grid(4, 60))
    between = Workload("prompt-local", steps=300, grid=Grid(4, 60), prefill_every=50)
    without, with_prefills = (misses(each, capacity, [DEFAULT_POLICY])[DEFAULT_POLICY] for each in (plain, between))
    assert with_prefills <= 1.1 * without
