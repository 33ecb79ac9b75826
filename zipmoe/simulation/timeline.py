"""Simulates the tasks of a layer's experts for a given order of fetches, by list scheduling.

The I/O channel reads in the given order and never waits. A free worker takes the most urgent recovery with chunks that
are ready. The model's thread takes the most urgent product that is ready. A task is never interrupted.

Where workers and model share their cores, as on a CPU, recoveries and products take turns on all cores. Each recovery
then takes the L-th part of a worker's time, as if all workers shared the recovery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from zipmoe.residency.tasks import ExpertCosts, FetchRequest, Handover, Task, WorkKind, tasks_of
from zipmoe.types import ExpertKey


class TaskSpan(NamedTuple):
    """Begin and end of a task, in seconds."""

    key: ExpertKey
    task: Task
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Result of simulating an order of fetches.

    Attributes:
        spans: begin and end of every task.
        fetched_s: end of the last read or recovery: the makespan that the scheduler bounds.
        ended_s: end of the last product.
        stall_s: seconds before `ended_s` in which no product is computed.
        channel_s: time at which the I/O channel is free again.
    """

    spans: tuple[TaskSpan, ...]
    fetched_s: float
    ended_s: float
    stall_s: float
    channel_s: float


class _Lane:
    """Free machines of a kind, and a heap of the ready tasks as (request, task), the most urgent first."""

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
    """Simulates all tasks of a layer's experts for a given order of fetches.

    Args:
        order: distinct requests, most urgent first. Reads follow this order, which is also the priority of recoveries
            and products.
        costs: costs of an expert's tensors.
        worker_count: L, at least 1.
        handover: unit in which read chunks become usable.
        channel_s: time at which the channel is free for the first read. Workers and model are free at 0.
        shares_cores: whether workers and model share their cores.

    Returns:
        The begin and end of every task, and the figures of the order.

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
                lanes[work].ready.append((rank, number))  # appended in ascending order, so the list is a heap
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
