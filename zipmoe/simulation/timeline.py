"""When everything ends if a layer's experts are fetched in a given order: list scheduling, played through.

The I/O channel reads in the order it is given and never waits. Whenever a worker is free, it takes the most urgent
recovery whose chunks are there; so does the model's thread with products. Nothing is interrupted once begun.

Where workers and model share their cores, as on a CPU, recoveries and products take turns on all of them: each recovery
then takes the L-th part of a worker's time, as if all workers shared it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from zipmoe.residency.tasks import ExpertCosts, FetchRequest, Handover, Task, WorkKind, tasks_of
from zipmoe.types import ExpertKey


class TaskSpan(NamedTuple):
    """When a task was carried out, in seconds."""

    key: ExpertKey
    task: Task
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """What came of an order.

    Attributes:
        spans: every task.
        fetched_s: when the last read and the last recovery had ended: the makespan that the scheduler bounds.
        ended_s: when the last product had been computed.
        stall_s: how long before that no product was being computed.
        channel_s: when the I/O channel was free again.
    """

    spans: tuple[TaskSpan, ...]
    fetched_s: float
    ended_s: float
    stall_s: float
    channel_s: float

    def computed_s(self) -> dict[ExpertKey, float]:
        """When each expert had been computed."""
        return {span.key: span.end_s for span in self.spans if span.task.work is WorkKind.PRODUCT}


class _Lane:
    """So many machines, and what waits for one of them: a heap of (request, task), the most urgent first."""

    __slots__ = ("free", "ready")

    def __init__(self, machines: int) -> None:
        self.free = machines
        self.ready: list[tuple[int, int]] = []


def simulate_schedule(
    order: Sequence[FetchRequest],
    costs: ExpertCosts,
    worker_count: int,
    *,
    handover: Handover = Handover.CHUNK,
    channel_s: float = 0.0,
    shares_cores: bool = False,
) -> Timeline:
    """Plays an order through.

    Args:
        order: distinct requests, most urgent first: read in this order, and recovered and computed with this priority.
        costs: of an expert's tensors.
        worker_count: L, at least 1.
        handover: when chunks that have been read can be used.
        channel_s: when the channel is free for the first read; workers and model are free at 0.
        shares_cores: whether workers and model share their cores.

    Returns:
        When everything was carried out.

    Cost: about 2 us a task.
    """
    graphs = [tasks_of(request.state, request.form, request.rows, costs, handover) for request in order]
    waits = [[len(task.after) for task in graph.tasks] for graph in graphs]
    model = _Lane(1)
    lanes = {WorkKind.RECOVERY: model if shares_cores else _Lane(worker_count), WorkKind.PRODUCT: model}
    running: list[tuple[float, int, int]] = []  # a heap of (end, request, task)
    spans: list[TaskSpan] = []

    def begin(rank: int, number: int, begin_s: float) -> float:
        task = graphs[rank].tasks[number]
        shared = shares_cores and task.work is WorkKind.RECOVERY
        end_s = begin_s + (task.seconds / worker_count if shared else task.seconds)
        heappush(running, (end_s, rank, number))
        spans.append(TaskSpan(order[rank].key, task, begin_s, end_s))
        return end_s

    for rank, graph in enumerate(graphs):
        for number in graph.roots:
            if (work := graph.tasks[number].work) is WorkKind.READ:
                channel_s = begin(rank, number, channel_s)
            else:
                lanes[work].ready.append((rank, number))  # in ascending order, which is a heap
    now_s = 0.0
    while True:
        for lane in lanes.values():
            while lane.ready and lane.free:
                lane.free -= 1
                begin(*heappop(lane.ready), now_s)
        if not running:
            return _timeline(spans, channel_s)
        now_s = running[0][0]
        while running and running[0][0] <= now_s:
            _, rank, number = heappop(running)
            graph = graphs[rank]
            if (work := graph.tasks[number].work) is not WorkKind.READ:
                lanes[work].free += 1
            for follower in graph.followers[number]:
                waits[rank][follower] -= 1
                if not waits[rank][follower]:
                    heappush(lanes[graph.tasks[follower].work].ready, (rank, follower))


def _timeline(spans: list[TaskSpan], channel_s: float) -> Timeline:
    fetching = [span.end_s for span in spans if span.task.work is not WorkKind.PRODUCT]
    computing = [span for span in spans if span.task.work is WorkKind.PRODUCT]
    ended_s = max((span.end_s for span in computing), default=0.0)
    return Timeline(
        spans=tuple(spans),
        fetched_s=max(fetching, default=0.0),
        ended_s=ended_s,
        stall_s=ended_s - sum(span.task.seconds for span in computing),
        channel_s=channel_s,
    )
