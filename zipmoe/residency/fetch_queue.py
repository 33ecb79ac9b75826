"""What is fetched next: experts that wait for slots, and operations that are under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence

from zipmoe.errors import DeadlineExceeded
from zipmoe.residency.counters import Counters, Reason
from zipmoe.residency.decoder_choice import DecoderAffinity
from zipmoe.residency.holding import Holding
from zipmoe.residency.policies.base import Policy
from zipmoe.residency.pools import DecoderSlots, Operations, Read, Recover, Release, Urgency
from zipmoe.residency.scheduler import Scheduler
from zipmoe.residency.slot_assignment import SlotAssignment
from zipmoe.residency.slot_pool import DecoderPools, SlotPool
from zipmoe.residency.state import Residency
from zipmoe.residency.tasks import FetchRequest
from zipmoe.types import Part

#: Every fetch counts as one unit of its decoder's work: experts of one model are alike.
_WORK_S = 1.0

_URGENCIES = {
    Reason.NEED: Urgency.NEEDED,
    Reason.PREFETCH: Urgency.PREFETCH,
    Reason.PROMOTION: Urgency.PREFETCH,
    Reason.FILL: Urgency.FILL,
}


class FetchQueue:
    """Starts fetches in the scheduler's order, as soon as there are slots for them.

    An expert is fetched only when all slots that it lacks are to be had at once. Whoever waits may hold parts from
    before, and gives them up when nothing else is left to give, so waiting experts never hold each other up for good.

    Attributes:
        decoders: the pools of the decoders that are attached.
        waiting: experts that the running step needs and for which nothing is under way, most urgent first.
        running: operations under way, by id.
    """

    def __init__(
        self, holdings: Sequence[Holding], policy: Policy, scheduler: Scheduler, counters: Counters, packed_rows: int
    ) -> None:
        self.decoders: dict[str, DecoderPools] = {}
        self.waiting: deque[Holding] = deque()
        self.running: dict[int, Read | Recover] = {}
        self.affinity = DecoderAffinity()
        self.placement = SlotAssignment(holdings, policy, self.affinity, counters)
        self._holdings = holdings
        self._counters = counters
        self._scheduler = scheduler
        self._packed_rows = packed_rows
        self._last_operation = 0

    def join(self, slots: DecoderSlots, pools: DecoderPools) -> None:
        """Takes a decoder in."""
        self.affinity.join(slots.decoder_id, worker_count=slots.worker_count, expert_slots=pools.e.slot_count)
        self.decoders[slots.decoder_id] = pools

    def lost(self, decoder_id: str) -> list[Holding]:
        """Forgets a decoder, all that it held, and what was to be fetched or under way there.

        Returns:
            Whose home it was.
        """
        gone = self.decoders.pop(decoder_id, None)
        if gone is None:
            return []
        self.affinity.lost(decoder_id)
        homeless = [held for held in self._holdings if held.home is gone]
        for held in homeless:
            self.running.pop(held.read_id, None)
            self.running.pop(held.recover_id, None)
            held.read_id = held.recover_id = 0
            for pool in (gone.tensor, gone.e, gone.sm):
                if held.has(pool.kind):
                    self.placement.drop(held, pool)
                held.assign(pool.kind, None)
            held.queued, held.home = False, None
        self.waiting = deque(held for held in self.waiting if held.home is not None)
        return homeless

    def begin(self) -> Operations:
        """Starts the handling of an event."""
        self.placement.begin()
        return Operations()

    def form(self, held: Holding) -> Residency:
        """The form that an expert is to be computed from, were it fetched now."""
        if held.has_tensor:
            return Residency.FULL
        recovers = held.rows > self._packed_rows and (held.home is None or held.home.tensor.slot_count > 0)
        return Residency.FULL if recovers else Residency.PACKED

    def enqueue(self, experts: Sequence[Holding]) -> None:
        """Lets experts wait, in the scheduler's order, behind those that wait already.

        Raises:
            Unavailable: no decoder is attached.
        """
        for held in experts:
            self.settle(held)
        first = experts[0] if experts else None
        if first is None or all(held.rows == first.rows and held.empty for held in experts):
            # Whatever the scheduler, what is alike stays in the order of need.
            self.waiting.extend(experts)
            return
        requests = [FetchRequest(held.key, held.residency, self.form(held), held.rows) for held in experts]
        by_key = {held.key: held for held in experts}
        self.waiting.extend([by_key[request.key] for request in self._scheduler.order(requests)])

    def settle(self, held: Holding, among: Container[str] | None = None) -> None:
        """Decides at which decoder an expert is fetched: of these, if it has no home, where not all are to be had.

        Raises:
            Unavailable: no decoder is attached.
        """
        held.home = self.decoders[self.affinity.assign(held.key, _WORK_S, among)]
        held.queued = True

    def ended(self, held: Holding) -> None:
        """Nothing is under way for an expert any more, and nothing is to be."""
        if held.queued and held.home is not None:
            self.affinity.ended(held.home.decoder_id, _WORK_S)
        held.queued = False

    def start(self, operations: Operations, *, idle: bool) -> Operations:
        """Starts as many waiting fetches as there are slots for, at each decoder in order.

        Args:
            operations: where they go.
            idle: whether no expert is being computed, or waits to be.
        """
        left: deque[Holding] = deque()
        full: list[DecoderPools] = []
        while self.waiting:
            held = self.waiting.popleft()
            if held.home in full or not self.fetch(held, Reason.NEED, operations, len(self.waiting) + 1):
                left.append(held)
                if held.home is not None and held.home not in full:
                    full.append(held.home)
                if len(full) == len(self.decoders):
                    break
        self.waiting.extendleft(reversed(left))
        if self.waiting and idle and not self.running:
            # Nothing will become free by itself: what is there is held by experts that wait, or may not be lent.
            held = self.waiting.popleft()
            for pool in self._lacking(held, held.missing, self.form(held) is Residency.FULL):
                if not pool.free:
                    neighbours = [each for each in self.waiting if each.home is held.home]
                    self.placement.make_room(pool, neighbours, operations)
            started = self.fetch(held, Reason.NEED, operations, 1)
            assert started, f"there is no room for {held.key}"
        return operations

    def fetch(self, held: Holding, why: Reason, operations: Operations, crowd: int = 1) -> bool:
        """Starts to fetch what an expert lacks, if there are slots for all of it."""
        assert held.home is not None
        missing, recovers = held.missing, self.form(held) is Residency.FULL
        had_e, had_sm = held.e_slot, held.sm_slot
        if not self.placement.place(held, self._lacking(held, missing, recovers), why, crowd, operations):
            return False
        urgency = _URGENCIES[why]
        if missing:
            self._read(held, missing, urgency, operations)
        if recovers:
            self._recover(held, urgency, operations)
        if had_e or had_sm:
            self.placement.offer(held)
        return True

    def fill(self, held: Holding, parts: Part, operations: Operations) -> int:
        """Starts to read parts that an expert lacks; returns the operation's id, or 0 if it were at others' expense."""
        assert held.home is not None
        if not self.placement.place(held, held.home.lacking(parts), Reason.FILL, 1, operations):
            return 0
        self._read(held, parts, Urgency.FILL, operations)
        self.placement.offer(held)
        return held.read_id

    def read_ended(self, held: Holding, read: Read, error: Exception | None) -> None:
        """Takes note of what a read has left."""
        assert held.home is not None
        held.read_id = 0
        if error is None:
            self._counters.reads[read.parts] += 1
            held.was_read(read.parts)
            return
        for pool, slot in ((held.home.e, read.e_slot), (held.home.sm, read.sm_slot)):
            if slot is not None:
                self.placement.vacate(held, pool)

    def recovery_ended(self, held: Holding, error: Exception | None, releases: list[Release]) -> None:
        """Takes note of what a recovery has left."""
        home = held.home
        assert home is not None
        held.recover_id = 0
        if error is None:
            self._counters.recoveries += 1
            held.was_recovered()
            for pool in (home.e, home.sm):
                pool.spare.setdefault(held.index)
            return
        self.placement.vacate(held, home.tensor)
        if held.packed and held.pin is not Residency.PACKED and not isinstance(error, DeadlineExceeded):
            # What could not be recovered once is read afresh next time; what was not even tried is sound.
            releases += [Release(pool.kind, self.placement.drop(held, pool)) for pool in (home.e, home.sm)]

    def promote(self, held: Holding, why: Reason, operations: Operations) -> int:
        """Starts to recover a PACKED expert in the background, if that pays; returns the operation's id, else 0."""
        assert held.home is not None
        if not self.placement.place(held, [held.home.tensor], why, 1, operations):
            return 0
        self._recover(held, _URGENCIES[why], operations)
        self.placement.offer(held)
        return held.recover_id

    def _read(self, held: Holding, parts: Part, urgency: Urgency, operations: Operations) -> None:
        e_slot, sm_slot = held.e_slot if parts & Part.E else None, held.sm_slot if parts & Part.SM else None
        read = Read(self._next_id(), held.key, parts, e_slot, sm_slot, urgency)
        operations.reads.append(read)
        self.running[read.operation_id] = read
        held.read_id = read.operation_id

    def _recover(self, held: Holding, urgency: Urgency, operations: Operations) -> None:
        assert held.e_slot is not None and held.sm_slot is not None and held.tensor_slot is not None
        recovery = Recover(self._next_id(), held.key, held.e_slot, held.sm_slot, held.tensor_slot, urgency)
        operations.recoveries.append(recovery)
        self.running[recovery.operation_id] = recovery
        held.recover_id = recovery.operation_id

    @staticmethod
    def _lacking(held: Holding, missing: Part, recovers: bool) -> tuple[SlotPool, ...]:
        """The pools in which an expert has no slot and needs one."""
        assert held.home is not None
        pools = held.home.lacking(missing)
        return (*pools, held.home.tensor) if recovers else pools

    def _next_id(self) -> int:
        self._last_operation += 1
        return self._last_operation
