"""Claims of the paper's cache planning, held by the planner."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.planning.costs import MB, make_costs
from zipmoe.planning.cache_plan import CachePlan
from zipmoe.planning.conditional_poisson import Floats, fit_weights, inclusion_probabilities
from zipmoe.planning.costs import Costs, RowCost
from zipmoe.planning.layer_time import STATES, ExpertBytes, layer_seconds
from zipmoe.planning.plan import Planner, PlanRequest
from zipmoe.planning.pool_sizes import PoolSizes
from zipmoe.planning.popularity import scale_to_sum
from zipmoe.residency.state import Residency

EXPERT = ExpertBytes(3 * MB, 9 * MB, 18 * MB)
SLOT_BYTES = PoolSizes(*EXPERT)
DISK_BOUND = make_costs(packed_ffn=RowCost(0.1e-3, 0.0), full_ffn=RowCost(0.1e-3, 0.0))
RECOVERY_BOUND = make_costs(recover_bytes_per_s=0.5e9, read_bytes_per_s=20e9)


def zipf(experts: int, chosen: int, exponent: float = 1.1) -> Floats:
    return scale_to_sum(np.arange(1, experts + 1) ** -exponent, chosen)


def planned(costs: Costs, budget_bytes: int, inclusion: Floats) -> CachePlan:
    request = PlanRequest([inclusion], costs, EXPERT, SLOT_BYTES)
    return Planner(request).plan(budget_bytes, PoolSizes(0, 0, 0))


def test_the_fitted_design_has_the_inclusion_probabilities_of_the_trace() -> None:
    """A layer's choice is a random set of fixed size with given inclusion probabilities.

    Source: hierarchical cache planning, iterative proportional fitting (Chen, Dempster & Liu 1994).
    """
    inclusion = zipf(60, 4)
    np.testing.assert_allclose(inclusion_probabilities(fit_weights(inclusion), 4), inclusion, atol=2e-9)


def test_no_other_distribution_with_those_probabilities_has_more_entropy() -> None:
    """Conditional Poisson is the maximum-entropy design: steps that keep all inclusion probabilities only lose entropy.

    Source: hierarchical cache planning, choice of the distribution.
    """
    sets = np.array([chosen for chosen in product((0, 1), repeat=5) if sum(chosen) == 2], dtype=np.float64)
    weights = fit_weights(zipf(5, 2, exponent=0.7))
    probability = np.prod(np.where(sets > 0, weights, 1.0), axis=1)
    probability /= probability.sum()
    *_, rows = np.linalg.svd(sets.T)
    directions = rows[5:]  # orthogonal to every expert's indicator, so these change no inclusion probability

    def entropy(p: Floats) -> float:
        return float(-(p * np.log(p)).sum())

    for direction in directions:
        np.testing.assert_allclose(direction @ sets, 0, atol=1e-12)
        for step in (-0.02, -0.002, 0.002, 0.02):
            other = probability + step * direction
            assert (other > 0).all()
            assert entropy(other) < entropy(probability)


def class_distribution(weights: Floats, classes: NDArray[np.int64], class_count: int, chosen: int) -> Floats:
    """The joint distribution of the numbers of chosen experts in each class, by the definition: over all sets."""
    joint = np.zeros((chosen + 1,) * class_count)
    for members in combinations(range(len(weights)), chosen):
        joint[tuple(np.bincount(classes[list(members)], minlength=class_count))] += np.prod(weights[list(members)])
    return joint / joint.sum()


@pytest.mark.parametrize("costs", [DISK_BOUND, RECOVERY_BOUND, make_costs()], ids=["disk", "recovery", "balanced"])
@pytest.mark.parametrize("megabytes", [20, 45, 70])
def test_the_split_is_that_of_exhaustive_search(costs: Costs, megabytes: int) -> None:
    """The split over the states is the best one on small cases. Source: hierarchical cache planning."""
    inclusion = zipf(6, 2)
    weights = fit_weights(inclusion)
    best = np.inf
    for split in product(range(7), repeat=4):
        full, packed, sm_only, e_only = split
        nbytes = full * 18 + (packed + sm_only) * 9 + (packed + e_only) * 3
        if sum(split) > 6 or nbytes > megabytes:
            continue
        classes = np.repeat(np.arange(5), [*split, 6 - sum(split)])
        joint = class_distribution(weights, classes, 5, 2)
        counts = np.argwhere(joint > 0)
        best = min(best, float(joint[tuple(counts.T)] @ layer_seconds(counts, EXPERT, costs)))
    assert planned(costs, megabytes * MB, inclusion).seconds == pytest.approx(best, rel=1e-3)


def test_where_the_disk_is_the_bottleneck_memory_goes_to_compressed_experts() -> None:
    """Compressed states hold more experts in the same bytes and so save more I/O. Source: compression states."""
    plan = planned(DISK_BOUND, 20 * 18 * MB, zipf(60, 4))
    assert plan.expert_counts[Residency.FULL] == 0
    uncompressed_hits = float(zipf(60, 4)[:20].sum())
    assert plan.read_bytes < 0.7 * (4 - uncompressed_hits) * 18 * MB


def test_where_decompression_is_the_bottleneck_memory_goes_to_full_experts() -> None:
    """Only FULL experts spare the CPU as well as the disk. Source: compression states."""
    plan = planned(RECOVERY_BOUND, 20 * 18 * MB, zipf(60, 4))
    assert plan.expert_counts[Residency.FULL] >= 18


def test_popular_experts_are_kept_in_the_more_complete_states() -> None:
    """The hierarchy of states follows the ranking by popularity. Source: rank-based cache management."""
    plan = planned(make_costs(), 25 * 18 * MB, zipf(60, 4))
    ranks = [STATES.index(state) for state in plan.layers[0].residency]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) >= 3
