"""In which order a layer's experts are fetched.

One order serves all: the I/O channel reads in it what is missing, and workers and model prefer, of what is ready, what
comes first in it. Whoever executes it has to be work-conserving: nobody waits while something is ready for him.

The bound. Let T be the time to read everything, W the recoveries' total, p the longest single recovery and L the number
of workers. The channel never waits, so all reads have ended by T. A worker that idles after T means that no recovery
waits, so the last one to begin does so by T + (W - p) / L, and all have ended by T + W/L + (1 - 1/L) p. As T, W/L and p
are each at most the optimum, the makespan is at most (3 - 1/L) times the optimum. That holds for every order; what an
order decides is how near to 1 the factor comes.

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: block list-scheduling and its approximation ratio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from zipmoe.errors import InvalidRequest
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import ExpertCosts, FetchRequest


class Scheduler(ABC):
    """Orders the experts that one pass through a layer needs.

    Thread: any; a scheduler keeps nothing from one call to the next.
    """

    name: ClassVar[str]

    @abstractmethod
    def order(self, requests: Sequence[FetchRequest]) -> list[FetchRequest]:
        """Orders requests.

        Args:
            requests: distinct experts in any residency states, in the order of need.

        Returns:
            The same requests, most urgent first.
        """


class FifoScheduler(Scheduler):
    """First come, first served: keeps the order of need."""

    name = "fifo"

    def order(self, requests: Sequence[FetchRequest]) -> list[FetchRequest]:
        """Orders requests as they came."""
        return list(requests)


class BlockScheduler(Scheduler):
    """Pairs requests that are heavy on the channel with those that are heavy on workers or model, block by block.

    Behind its read a request keeps workers and model busy for a while, its *pace*: the longer of its recovery, shared
    by all workers, and its product; where workers and model share their cores, the sum of both. Requests that read
    nothing come first: they are computed while others load. Of the rest, a request whose read is shorter than its pace
    is light, the others are heavy. A block is as many heavy requests as can be read while workers and model still have
    work from before, and one light request, which gives them more. So the channel never idles, and workers and model
    hardly before no light request is left.

    Lights come with the shortest read first, heavies with the longest pace first: if blocks held one request each, this
    would be Johnson's order of a flow shop of two machines. What is alike stays in the order of need.

    Cost: about 1.5 us a request.
    Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: blocks of I/O-bound and compute-bound requests.
    """

    name = "block"

    def __init__(self, costs: ExpertCosts, worker_count: int, *, shares_cores: bool = False) -> None:
        """Prepares a scheduler for experts of one shape.

        Args:
            costs: of an expert's tensors.
            worker_count: L, at least 1.
            shares_cores: whether workers and model share their cores.

        Raises:
            InvalidRequest: there is no worker.
        """
        if worker_count < 1:
            raise InvalidRequest(f"a scheduler needs at least 1 worker, not {worker_count}")
        self._read_s = {state: sum(cost.read_s(state) for cost in costs) for state in Residency}
        self._recover_s = sum(cost.recover_s for cost in costs) / worker_count
        self._full_s = sum(cost.full_s for cost in costs)
        self._full_row_s = sum(cost.full_row_s for cost in costs)
        self._shares_cores = shares_cores
        self._products_set_pace = shares_cores or self._full_s >= self._recover_s
        self._packed_s = sum(cost.packed_s for cost in costs)
        self._packed_row_s = sum(cost.packed_row_s for cost in costs)

    def order(self, requests: Sequence[FetchRequest]) -> list[FetchRequest]:
        """Orders requests in blocks."""
        ready: list[tuple[bool, int, FetchRequest]] = []
        light: list[tuple[float, float, int, FetchRequest]] = []
        heavy: list[tuple[float, float, int, FetchRequest]] = []
        busy_s = 0.0  # until then whoever sets the pace has work, if the channel begins at 0
        for position, request in enumerate(requests):
            read_s, pace_s = self._read_s[request.state], self._pace_s(request)
            if not read_s:
                ready.append((request.recovers, position, request))
                # Products of resident experts do not keep workers busy.
                busy_s += pace_s if request.recovers or self._products_set_pace else 0.0
            elif read_s < pace_s:
                light.append((read_s, -pace_s, position, request))
            else:
                heavy.append((-pace_s, read_s, position, request))
        for group in (ready, light, heavy):
            group.sort()
        ordered = [request for *_, request in ready]
        channel_s, taken = 0.0, 0
        for light_read_s, minus_light_pace_s, _, request in light:
            while taken < len(heavy) and channel_s + heavy[taken][1] <= busy_s:
                minus_pace_s, read_s, _, paired = heavy[taken]
                channel_s += read_s
                busy_s -= minus_pace_s
                ordered.append(paired)
                taken += 1
            # Its chunks are worked on as they arrive, so its work is taken to begin with its read.
            busy_s = max(busy_s, channel_s) - minus_light_pace_s
            channel_s += light_read_s
            ordered.append(request)
        ordered += [request for *_, request in heavy[taken:]]
        return ordered

    def _pace_s(self, request: FetchRequest) -> float:
        if request.state is Residency.FULL:
            return self._full_s + (request.rows - 1) * self._full_row_s
        if request.form is Residency.PACKED:
            return self._packed_s + (request.rows - 1) * self._packed_row_s
        product_s = self._full_s + (request.rows - 1) * self._full_row_s
        return self._recover_s + product_s if self._shares_cores else max(self._recover_s, product_s)


def make_scheduler(name: str, costs: ExpertCosts, worker_count: int, *, shares_cores: bool = False) -> Scheduler:
    """Makes a scheduler by its name, `block` or `fifo`.

    Args:
        name: which.
        costs: as for `BlockScheduler`, like the others.
        worker_count: L.
        shares_cores: whether workers and model share their cores.

    Raises:
        InvalidRequest: there is no such scheduler, or no worker.
    """
    if name == BlockScheduler.name:
        return BlockScheduler(costs, worker_count, shares_cores=shares_cores)
    if name == FifoScheduler.name:
        return FifoScheduler()
    raise InvalidRequest(f"there is no scheduler {name!r}, only block and fifo")
