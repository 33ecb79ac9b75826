"""Simulates a machine in virtual time, from measured costs: one I/O channel, L workers and the model's thread.

reads        one at a time, needed reads before prefetches; a cancelled read that still waits is dropped
recoveries   one at a time, shared by all workers, needed recoveries first; a recovery waits for the read of its chunks
computing    on the model's thread; where the model's thread and the workers share cores, the workers rest meanwhile
"""

from __future__ import annotations

from heapq import heappop, heappush

from zipmoe.errors import Unavailable
from zipmoe.planning.costs import Costs
from zipmoe.planning.layer_time import ExpertBytes
from zipmoe.residency.pools import Operations, Read, Recover
from zipmoe.types import ExpertKey, Part


class SimulatedMachine:
    """Carries out the brain's operations in simulated time.

    Attributes:
        now_s: time of the model's thread.
        bytes_read: bytes of all reads that have begun.
    """

    def __init__(self, costs: Costs, expert: ExpertBytes) -> None:
        self.now_s = 0.0
        self.bytes_read = 0
        self._costs = costs
        self._read_bytes = {Part.E: expert.e, Part.SM: expert.sm, Part.ALL: expert.e + expert.sm}
        self._recover_s = costs.recover_s(expert.tensor) / costs.worker_count
        self._clock_s = 0.0
        self._reads: list[tuple[int, int, Read]] = []
        self._recoveries: list[tuple[int, int, Recover]] = []
        self._reading: set[ExpertKey] = set()
        self._cancelled: set[int] = set()
        self._channel_free_s = 0.0
        self._arriving: list[tuple[float, int, Read]] = []
        self._recovering: Recover | None = None
        self._recovered_s = 0.0
        self._finished: list[tuple[int, Exception | None]] = []

    def submit(self, operations: Operations) -> None:
        """Accepts operations at the time of the model's thread."""
        self._cancelled.update(operations.cancels)
        for read in operations.reads:
            heappush(self._reads, (read.urgency, read.operation_id, read))
            self._reading.add(read.key)
        for recovery in operations.recoveries:
            heappush(self._recoveries, (recovery.urgency, recovery.operation_id, recovery))

    def compute(self, seconds: float) -> None:
        """Advances the time of the model's thread by a computation of `seconds`."""
        if self._costs.shares_cores and self._recovering is not None:
            self._recovered_s += seconds
        self.now_s += seconds
        self._advance(self.now_s, computing=self._costs.shares_cores)

    def wait(self) -> None:
        """Advances the time of the model's thread until an operation has ended."""
        while not self._finished:
            self._begin()
            assert self._arriving or self._recovering, "the model's thread waits for nothing"
            self.now_s = max(self.now_s, self._next_s())
            self._advance(self.now_s)

    def take_finished(self) -> list[tuple[int, Exception | None]]:
        """Returns the operations that have ended since the last call and the errors, in the order of ending."""
        finished, self._finished = self._finished, []
        return finished

    def _advance(self, until_s: float, *, computing: bool = False) -> None:
        """Advances the I/O channel and the workers to a time."""
        while self._reads or self._arriving or self._recoveries or self._recovering:
            self._begin(rest=computing)
            if self._next_s() > until_s:
                break
            self._clock_s = self._next_s()
            if self._arriving and self._arriving[0][0] == self._clock_s:
                _, operation_id, read = heappop(self._arriving)
                self._reading.discard(read.key)
            elif self._recovering is not None and self._recovered_s == self._clock_s:
                operation_id, self._recovering = self._recovering.operation_id, None
            else:
                continue  # the channel is free for the next read
            self._finished.append((operation_id, None))
        self._clock_s = until_s

    def _next_s(self) -> float:
        times = [self._arriving[0][0]] if self._arriving else []
        if self._recovering is not None:
            times.append(self._recovered_s)
        if self._reads:
            times.append(max(self._channel_free_s, self._clock_s))
        return min(times, default=float("inf"))

    def _begin(self, *, rest: bool = False) -> None:
        """Begins the reads and the recovery that can begin now; no recovery where the workers rest."""
        while self._reads and self._channel_free_s <= self._clock_s:
            _, operation_id, read = heappop(self._reads)
            if operation_id in self._cancelled:
                self._reading.discard(read.key)
                self._finished.append((operation_id, Unavailable("the read was cancelled")))
                continue
            nbytes = self._read_bytes[read.parts]
            self.bytes_read += nbytes
            self._channel_free_s = self._clock_s + self._costs.queued_read_s(nbytes)
            heappush(self._arriving, (self._channel_free_s + self._costs.read_latency_s, operation_id, read))
        if self._recovering is None and not rest:
            ready = [entry for entry in self._recoveries if entry[2].key not in self._reading]
            if ready:
                entry = min(ready)
                self._recoveries.remove(entry)
                self._recovering = entry[2]
                self._recovered_s = self._clock_s + self._recover_s
