"""What ordering a layer's fetches costs, and how far from the best order it ends.

    python -m benchmarks.schedule_orders [--instances 60]

Cost: microseconds to order so many missing experts, median. Quality: five experts in random states with random costs,
the time until all are computed relative to that of the best of their 120 orders.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from itertools import permutations

from zipmoe.residency.scheduler import BlockScheduler, FifoScheduler, Scheduler
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import ExpertCosts, FetchRequest, Handover, TensorCosts
from zipmoe.simulation.timeline import simulate_schedule
from zipmoe.types import ExpertKey

STATES, ROUNDS, EXPERTS = tuple(Residency), 400, 5


def draw_requests(draw: random.Random, count: int, states: tuple[Residency, ...]) -> list[FetchRequest]:
    """Experts in random states, all to be recovered or all to be computed from their chunks."""
    form = draw.choice((Residency.FULL, Residency.PACKED))
    return [FetchRequest(ExpertKey(0, index), draw.choice(states), form) for index in range(count)]


def draw_costs(draw: random.Random) -> ExpertCosts:
    """Gate|up and down of an expert whose SM-chunk is three quarters of its bytes, on some machine."""
    recover_s, e_read_s, product_s = draw.uniform(0.2, 16), draw.uniform(1, 4), draw.uniform(0, 6)
    whole = (e_read_s, 3 * e_read_s, recover_s, product_s, 1.5 * product_s)
    return tuple(
        TensorCosts(share * whole[0], share * whole[1], share * whole[2], 4, share * whole[3], share * whole[4])
        for share in (2 / 3, 1 / 3)
    )


def cost_us(scheduler: Scheduler, requests: list[FetchRequest]) -> float:
    """Median time of one call."""
    times = []
    for _ in range(ROUNDS):
        begin_s = time.perf_counter()
        scheduler.order(requests)
        times.append(time.perf_counter() - begin_s)
    return statistics.median(times) * 1e6


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=60)
    options = parser.parse_args()
    draw = random.Random(1)
    for count in (1, 4, 8, 30):
        requests = draw_requests(draw, count, STATES[:3])
        print(f"{count:>3} missing: {cost_us(BlockScheduler(draw_costs(draw), 2), requests):.1f} us")
    for handover in Handover:
        ratios: dict[str, list[float]] = {"block": [], "fifo": []}
        for _ in range(options.instances):
            costs, workers = draw_costs(draw), draw.choice((1, 2, 4))
            requests = draw_requests(draw, EXPERTS, STATES)

            def ended_s(order: list[FetchRequest], costs: ExpertCosts = costs, workers: int = workers) -> float:
                return simulate_schedule(order, costs, workers, handover=handover).ended_s  # noqa: B023

            best_s = min(ended_s(list(order)) for order in permutations(requests))
            for scheduler in (BlockScheduler(costs, workers), FifoScheduler()):
                ratios[scheduler.name].append(ended_s(scheduler.order(requests)) / best_s)
        found = (f"{name} {statistics.mean(each):.3f} (at most {max(each):.3f})" for name, each in ratios.items())
        print(f"handed over by {handover.value}: {', '.join(found)} of the best order")


if __name__ == "__main__":
    main()
