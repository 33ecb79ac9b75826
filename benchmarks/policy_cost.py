"""What a layer pass costs in the brain: policy, slots and order together, without I/O and without computing.

    python benchmarks/policy_cost.py [--layers 24] [--experts 60] [--steps 150] [--capacity 0.5]

A pass is everything that the router asks of the brain for one layer: `need`, and `completed`, `next_usable`, `done` for
each expert. Passes are grouped by how many experts were missing; printed are medians in microseconds, or another
quantile: on a busy machine 0.2 is nearer to what a quiet one would give. The target is 50 for a pass and 10 more for
each missing expert. Policies take turns, step by step, so that other load hits all alike.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

from zipmoe.residency.brain import Brain, BrainSettings
from zipmoe.residency.policies.registry import create_policy, policy_names
from zipmoe.residency.pools import DecoderSlots, Grid, Operations, Phase, Pool, PoolSlots
from zipmoe.residency.scheduler import BlockScheduler
from zipmoe.residency.tasks import TensorCosts
from zipmoe.simulation.trace import RoutedPass
from zipmoe.simulation.workload import Workload, generate

TARGET_PASS_US, TARGET_MISS_US = 50.0, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--experts", type=int, default=60)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--capacity", type=float, default=0.5)
    parser.add_argument("--quantile", type=float, default=0.5)
    arguments = parser.parse_args()
    grid = Grid(arguments.layers, arguments.experts)
    trace = list(generate(Workload("prompt-local", steps=arguments.steps, grid=grid)))
    brains = {name: make_brain(name, grid, round(arguments.capacity * grid.size)) for name in policy_names()}
    samples: dict[str, dict[int, list[float]]] = {name: defaultdict(list) for name in brains}
    for step, passes in groupby(trace, key=lambda routed: routed.step):
        passes_of_step = list(passes)
        for name, brain in brains.items():
            run_step(brain, passes_of_step, samples[name] if step >= arguments.steps // 3 else defaultdict(list))
    quantile = arguments.quantile
    print(f"{grid.layer_count} layers of {grid.expert_count} experts, 4 a token, slots for {arguments.capacity:.0%}")
    print(f"us of a pass by experts missing, quantile {quantile}")
    print(f"{'policy':10}" + "".join(f"{count:>9}" for count in range(5)) + f"{'all':>9}")
    for name, by_misses in samples.items():
        everything = [sample for each in by_misses.values() for sample in each]
        figures = [*(by_misses[count] for count in range(5)), everything]
        print(f"{name:10}" + "".join(at_quantile(each, quantile) for each in figures))
    print(f"{'target':10}" + "".join(f"{TARGET_PASS_US + count * TARGET_MISS_US:9.1f}" for count in range(5)))


def make_brain(policy: str, grid: Grid, slots: int) -> Brain:
    scheduler = BlockScheduler((TensorCosts(1e-3, 3e-3, 2e-3, 4),), 2)
    brain = Brain(create_policy(policy, grid), scheduler, BrainSettings())
    counts = {Pool.E: slots, Pool.SM: slots, Pool.TENSOR: 0}
    brain.join(DecoderSlots("a", 2, [PoolSlots(pool, "a", 1, count, 1) for pool, count in counts.items()]))
    brain.step(Phase.DECODE, 1)
    return brain


def run_step(brain: Brain, passes: Sequence[RoutedPass], samples: dict[int, list[float]]) -> None:
    for routed in passes:
        misses = brain.counters.missed(Phase.DECODE)
        begin_s = time.perf_counter()
        run_pass(brain, routed)
        ended_s = time.perf_counter()
        samples[brain.counters.missed(Phase.DECODE) - misses].append((ended_s - begin_s) * 1e6)


def run_pass(brain: Brain, routed: RoutedPass) -> None:
    running = started(brain.need(routed.layer, dict.fromkeys(routed.experts, 1)))
    left = len(routed.experts)
    while left:
        usable = brain.next_usable()
        if usable is None:
            running += started(brain.completed(running.pop(0), None))
        else:
            running += started(brain.done(usable.key))
            left -= 1


def started(operations: Operations) -> list[int]:
    return [read.operation_id for read in operations.reads]


def at_quantile(samples: Sequence[float], quantile: float) -> str:
    return f"{sorted(samples)[int(quantile * len(samples))]:9.1f}" if len(samples) > 9 else f"{'-':>9}"


if __name__ == "__main__":
    main()
