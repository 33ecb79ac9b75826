"""How far a policy could get on the made-up workloads: misses of ours beside those of policies that are told more.

    python benchmarks/policy_bounds.py [--workload shifting] [--steps 5000] [--seed 0]

    restarted   told when popularity changes: counts uses since then, which ranks experts as well as their uses allow
    told        told the popularity itself, which leaves nothing to learn

All lose the expert that brings the fewest hits for the time its slot is held, as ours does; tokens are independent, so
without knowing them in advance, as `belady` does, no more can be known than `told` is. Ratios are to the best of the
other policies. No brain and no machine: what is missed depends on the policy alone (`zipmoe simulate` misses the same).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from zipmoe.residency.policies.adaptive import AdaptivePolicy
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.policies.belady import BeladyPolicy
from zipmoe.residency.policies.fifo import FifoPolicy
from zipmoe.residency.policies.registry import DEFAULT_POLICY, create_policy, policy_names
from zipmoe.residency.pools import Grid, Pool
from zipmoe.simulation.trace import RoutedPass
from zipmoe.simulation.workload import WORKLOADS, Workload, generate, selection_weights

PRIOR_USES = 60.0


class InformedPolicy:
    """The workload's own popularity."""

    def __init__(self, workload: Workload) -> None:
        self._stretches = selection_weights(workload)
        self._left = 0
        self.learn(judge=True)

    def note(self, *_: object) -> None:
        pass

    def learn(self, *, judge: bool) -> None:
        if not self._left:
            self._left, weights = next(self._stretches)
            self.shares = weights / weights.sum(axis=1, keepdims=True)
        self._left -= 1


class Restarted:
    """Counts of uses since popularity has changed."""

    def __init__(self, workload: Workload) -> None:
        self._stretches = selection_weights(workload)
        self._left = next(self._stretches)[0]
        self.shares = np.full(workload.grid, PRIOR_USES)

    def note(self, layer: int, experts: Sequence[int], *_: object) -> None:
        self.shares[layer][experts] += 1

    def learn(self, *, judge: bool) -> None:
        self._left -= 1
        if not self._left:
            self._left = next(self._stretches)[0]
            self.shares[:] = PRIOR_USES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="shifting")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    workload = Workload(arguments.workload, arguments.steps, arguments.seed)
    passes = list(generate(workload))
    print(f"{workload.name}, {workload.steps} steps, seed {workload.seed}: misses, and ratio to the best of the others")
    for capacity in (0.25, 0.5, 0.75):
        slots = round(capacity * workload.grid.size)
        found = {name: misses(policy, passes, slots) for name, policy in policies(workload, passes).items()}
        best = min(found[name] for name in policy_names() if name != DEFAULT_POLICY)
        print(f"{capacity:4.0%}", "  ".join(f"{name} {count} ({count / best:.3f})" for name, count in found.items()))


def policies(workload: Workload, passes: Sequence[RoutedPass]) -> dict[str, Policy]:
    found: dict[str, Policy] = {name: create_policy(name, workload.grid) for name in policy_names()}
    for name, likely in (("restarted", Restarted(workload)), ("told", InformedPolicy(workload))):
        policy = AdaptivePolicy(workload.grid)
        policy.likely = likely  # type: ignore[assignment]
        found[name] = policy
    found["belady"] = BeladyPolicy(workload.grid, ((each.layer, each.experts, each.phase) for each in passes))
    return found


def misses(policy: Policy, passes: Sequence[RoutedPass], slots: int) -> int:
    """Replays a trace with one slot for each expert that is held."""
    grid: Grid = policy.grid
    held = np.zeros(grid.size, bool)
    free, count = slots, 0
    for routed in passes:
        policy.used(routed.layer, dict.fromkeys(routed.experts, 1), routed.phase)
        needed = routed.layer * grid.expert_count + np.array(routed.experts)
        missing = needed[~held[needed]]
        count += len(missing)
        if len(missing) > free:
            candidates = held.copy()
            candidates[needed] = False
            victims = policy.victims(Pool.E, candidates, len(missing) - free)
            held[victims] = False
            free += len(victims)
        held[missing] = True
        free -= len(missing)
        if isinstance(policy, FifoPolicy):
            for index in missing.tolist():
                policy.placed(Pool.E, index)
    return count


if __name__ == "__main__":
    main()
