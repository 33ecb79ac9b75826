"""When everything ends if a layer's experts are fetched in a given order: list scheduling, played through.

The I/O channel reads in the order it is given and never waits. Whenever a worker is free, it takes the most urgent
recovery whose chunks are there; so does the model's thread with products. Nothing is interrupted once begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from zipmoe.residency.tasks import ExpertCosts, FetchRequest, Handover, Lane, Task, tasks_of
from zipmoe.types import ExpertKey


class Span(NamedTuple):
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
        stall_s: how long the model's thread was without work before that.
        channel_s: when the I/O channel was free again.
    """

    spans: tuple[Span, ...]
    fetched_s: float
    ended_s: float
    stall_s: float
    channel_s: float

    def computed_s(self) -> dict[ExpertKey, float]:
        """When each expert had been computed."""
        return {span.key: span.end_s for span in self.spans if span.task.lane is Lane.MODEL}


def simulate_schedule(
    order: Sequence[FetchRequest],
    costs: ExpertCosts,
    worker_count: int,
    *,
    handover: Handover = Handover.CHUNK,
    channel_s: float = 0.0,
) -> Timeline:
    """Plays an order through.

    Args:
        order: distinct requests, most urgent first: read in this order, and recovered and computed with this priority.
        costs: of an expert's tensors.
        worker_count: L, at least 1.
        handover: when chunks that have been read can be used.
        channel_s: when the channel is free for the first read; workers and model are free at 0.

    Returns:
        When everything was carried out.

    Cost: about 2 us a task.
    """
    graphs = [tasks_of(request.state, request.form, request.rows, costs, handover) for request in order]
    waits = [[len(task.after) for task in graph.tasks] for graph in graphs]
    free = {Lane.WORKER: worker_count, Lane.MODEL: 1}
    ready: dict[Lane, list[tuple[int, int]]] = {Lane.WORKER: [], Lane.MODEL: []}  # heaps of (request, task)
    running: list[tuple[float, int, int]] = []  # a heap of (end, request, task)
    spans: list[Span] = []

    def begin(rank: int, number: int, begin_s: float) -> float:
        task = graphs[rank].tasks[number]
        heappush(running, (begin_s + task.seconds, rank, number))
        spans.append(Span(order[rank].key, task, begin_s, begin_s + task.seconds))
        return begin_s + task.seconds

    for rank, graph in enumerate(graphs):
        for number in graph.roots:
            if graph.tasks[number].lane is Lane.CHANNEL:
                channel_s = begin(rank, number, channel_s)
            else:
                ready[graph.tasks[number].lane].append((rank, number))
    now_s = 0.0
    while True:
        for lane, waiting in ready.items():
            while waiting and free[lane]:
                free[lane] -= 1
                begin(*heappop(waiting), now_s)
        if not running:
            return _timeline(spans, channel_s)
        now_s = running[0][0]
        while running and running[0][0] <= now_s:
            _, rank, number = heappop(running)
            graph = graphs[rank]
            if (lane := graph.tasks[number].lane) is not Lane.CHANNEL:
                free[lane] += 1
            for follower in graph.followers[number]:
                waits[rank][follower] -= 1
                if not waits[rank][follower]:
                    heappush(ready[graph.tasks[follower].lane], (rank, follower))


def _timeline(spans: list[Span], channel_s: float) -> Timeline:
    fetching = [span.end_s for span in spans if span.task.lane is not Lane.MODEL]
    computing = [span for span in spans if span.task.lane is Lane.MODEL]
    ended_s = max((span.end_s for span in computing), default=0.0)
    return Timeline(
        spans=tuple(spans),
        fetched_s=max(fetching, default=0.0),
        ended_s=ended_s,
        stall_s=ended_s - sum(span.task.seconds for span in computing),
        channel_s=channel_s,
    )
