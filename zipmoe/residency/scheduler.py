"""Orders the fetches of a layer's experts.

Channel, workers and model follow the same order. The I/O channel reads the missing chunks in this order. Workers and
model take the first ready task in this order. They have to be work-conserving: none idles while a task is ready.

The bound. Let T be the time to read everything, W the recoveries' total, p the longest single recovery and L the number
of workers. The channel never waits, so all reads have ended by T. A worker that idles after T means that no recovery
waits, so the last recovery begins by T + (W - p) / L, and all have ended by T + W/L + (1 - 1/L) p. T, W/L and p are
each at most the optimum, so the makespan is at most (3 - 1/L) times the optimum. This bound holds for every order. A
good order brings the factor nearer to 1.

Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: block list-scheduling and its approximation ratio.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from zipmoe.errors import InvalidRequest
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import ExpertCosts, FetchRequest, TensorCosts


class Scheduler(ABC):
    """Orders the experts that a pass through a layer needs.

    Thread: any; a scheduler keeps no state between calls.
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
    """Keeps the order of need (first come, first served)."""

    name = "fifo"

    def order(self, requests: Sequence[FetchRequest]) -> list[FetchRequest]:
        """Returns the requests in the given order."""
        return list(requests)


class BlockScheduler(Scheduler):
    """Interleaves requests with long reads and requests with much work for workers or model, in blocks.

    After its read a request keeps workers and model busy for a time that is called its *pace*. The pace is the longer
    of the recovery, shared by all workers, and the product. Where workers and model share their cores, it is the sum of
    both. Requests that read nothing come first, since they can be computed while others load. A request with a read
    shorter than its pace is light; the others are heavy. A block is as many heavy requests as can be read while workers
    and model still have earlier work, followed by one light request, which gives them more work. So the channel never
    idles, and workers and model hardly idle until the last light request.

    Light requests are sorted by shortest read, heavy requests by longest pace. With one request in each block this
    would be Johnson's order for a flow shop of two machines. Equal requests stay in the order of need.

    Cost: about 1.5 us a request.
    Source: ZipMoE (arXiv 2601.21198), cache-affinity scheduling: blocks of I/O-bound and compute-bound requests.
    """

    name = "block"

    def __init__(self, costs: ExpertCosts, worker_count: int, *, shares_cores: bool = False) -> None:
        """Makes a scheduler for experts of one shape.

        Args:
            costs: costs of an expert's tensors.
            worker_count: L, the number of recovery workers, at least 1.
            shares_cores: whether workers and model share their cores.

        Raises:
            InvalidRequest: there is no worker.
        """
        if worker_count < 1:
            raise InvalidRequest(f"a scheduler needs at least 1 worker, not {worker_count}")
        self._read_s = {state: sum(cost.read_s(state) for cost in costs) for state in Residency}
        self._expert = TensorCosts(*(sum(values) for values in zip(*costs, strict=True)))
        self._recover_s = self._expert.recover_s / worker_count
        self._shares_cores = shares_cores
        self._products_set_pace = shares_cores or self._expert.full_s >= self._recover_s

    def order(self, requests: Sequence[FetchRequest]) -> list[FetchRequest]:
        """Orders requests that read nothing first, then blocks, then the heavy requests that are left."""
        ready: list[tuple[bool, int, FetchRequest]] = []
        light: list[tuple[float, float, int, FetchRequest]] = []
        heavy: list[tuple[float, float, int, FetchRequest]] = []
        busy_s = 0.0  # time until which the stage that sets the pace has work, if the channel begins at 0
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
            # Chunks are recovered as they arrive, so the work of a request is assumed to begin with its read.
            busy_s = max(busy_s, channel_s) - minus_light_pace_s
            channel_s += light_read_s
            ordered.append(request)
        ordered += [request for *_, request in heavy[taken:]]
        return ordered

    def _pace_s(self, request: FetchRequest) -> float:
        is_full = request.state is Residency.FULL
        product_s = self._expert.compute_s(Residency.FULL if is_full else request.form, request.rows)
        if is_full or request.form is Residency.PACKED:
            return product_s
        return self._recover_s + product_s if self._shares_cores else max(self._recover_s, product_s)


def make_scheduler(name: str, costs: ExpertCosts, worker_count: int, *, shares_cores: bool = False) -> Scheduler:
    """Makes a scheduler by its name, `block` or `fifo`.

    Args:
        name: name of the scheduler.
        costs: costs of an expert's tensors, for `BlockScheduler` like the following arguments.
        worker_count: L, the number of recovery workers.
        shares_cores: whether workers and model share their cores.

    Raises:
        InvalidRequest: there is no scheduler of that name, or no worker.
    """
    if name == BlockScheduler.name:
        return BlockScheduler(costs, worker_count, shares_cores=shares_cores)
    if name == FifoScheduler.name:
        return FifoScheduler()
    raise InvalidRequest(f"there is no scheduler {name!r}, only block and fifo")
