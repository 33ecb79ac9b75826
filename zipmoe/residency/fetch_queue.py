"""Queue of the experts that wait for slots, and table of the operations under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence

from zipmoe.errors import DeadlineExceeded, ResourceExhausted
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

#: Work of every fetch in the load of its decoder. One constant for all, since the experts of a model have one size.
_WORK_S = 1.0

_URGENCIES = {
    Reason.NEED: Urgency.NEEDED,
    Reason.PREFETCH: Urgency.PREFETCH,
    Reason.PROMOTION: Urgency.PREFETCH,
    Reason.FILL: Urgency.FILL,
}


class FetchQueue:
    """Starts fetches in the scheduler's order as soon as slots can be assigned.

    The fetch of an expert starts only when all slots that the expert lacks can be assigned at once. A waiting expert
    may hold parts from an earlier fetch. It gives these up when no other slot is left, so waiting experts never
    deadlock.

    Attributes:
        decoders: pools of the attached decoders, by decoder id.
        waiting: experts that the running step needs and that have no operation under way, most urgent first.
        running: operations under way, by id.
        affinity: chooses the decoder of each fetch.
        slot_assignment: assigns the slots.
    """

    def __init__(
        self, holdings: Sequence[Holding], policy: Policy, scheduler: Scheduler, counters: Counters, packed_rows: int
    ) -> None:
        self.decoders: dict[str, DecoderPools] = {}
        self.waiting: deque[Holding] = deque()
        self.running: dict[int, Read | Recover] = {}
        self.affinity = DecoderAffinity()
        self.slot_assignment = SlotAssignment(holdings, policy, self.affinity, counters)
        self._holdings = holdings
        self._counters = counters
        self._scheduler = scheduler
        self._packed_rows = packed_rows
        self._last_operation = 0

    def join(self, slots: DecoderSlots, pools: DecoderPools) -> None:
        """Adds a decoder."""
        self.affinity.join(slots.decoder_id, worker_count=slots.worker_count, expert_slots=pools.e.slot_count)
        self.decoders[slots.decoder_id] = pools

    def lost(self, decoder_id: str) -> list[Holding]:
        """Forgets a decoder, its slots, and all fetches that wait or are under way there.

        Returns:
            The experts that had this decoder as their home.
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
                    self.slot_assignment.drop(held, pool)
                held.assign(pool.kind, None)
            held.queued, held.home = False, None
        self.waiting = deque(held for held in self.waiting if held.home is not None)
        return homeless

    def begin(self) -> Operations:
        """Starts the handling of an event."""
        self.slot_assignment.begin()
        return Operations()

    def form(self, held: Holding) -> Residency:
        """Returns the form that an expert is computed from if it is fetched now.

        Returns:
            FULL if the tensor is resident, or if the expert has more rows than `packed_rows` and its home, if any, has
            tensor slots; PACKED otherwise.
        """
        if held.has_tensor:
            return Residency.FULL
        recovers = held.rows > self._packed_rows and (held.home is None or held.home.tensor.slot_count > 0)
        return Residency.FULL if recovers else Residency.PACKED

    def enqueue(self, experts: Sequence[Holding]) -> None:
        """Appends experts to the waiting ones, in the scheduler's order.

        Raises:
            Unavailable: no decoder is attached.
        """
        for held in experts:
            self.settle(held)
        first = experts[0] if experts else None
        if first is None or all(held.rows == first.rows and held.empty for held in experts):
            # Every scheduler keeps equal requests in the order of need, so the scheduler is not called.
            self.waiting.extend(experts)
            return
        requests = [FetchRequest(held.key, held.residency, self.form(held), held.rows) for held in experts]
        by_key = {held.key: held for held in experts}
        self.waiting.extend([by_key[request.key] for request in self._scheduler.order(requests)])

    def settle(self, held: Holding, among: Container[str] | None = None) -> None:
        """Decides which decoder fetches an expert, and adds the fetch to the load of that decoder.

        Args:
            held: the expert.
            among: ids of the decoders that an expert without a home may go to; None for all.

        Raises:
            Unavailable: no decoder is attached.
        """
        held.home = self.decoders[self.affinity.assign(held.key, _WORK_S, among)]
        held.queued = True

    def remove_load(self, held: Holding) -> None:
        """Takes the fetch of an expert off the load of its decoder."""
        if held.queued and held.home is not None:
            self.affinity.remove_load(held.home.decoder_id, _WORK_S)
        held.queued = False

    def start(self, operations: Operations, *, idle: bool) -> Operations:
        """Starts as many waiting fetches as slots can be assigned for, in order at each decoder.

        Args:
            operations: receives the operations.
            idle: whether no expert is being computed and none is ready to be. If nothing is under way either, a slot is
                freed unconditionally for the first waiting expert.

        Returns:
            `operations`.
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
            # No event will free a slot: waiting experts hold the slots, or the limit on transient experts is reached.
            held = self.waiting.popleft()
            for pool in self._lacking(held, held.missing, self.form(held) is Residency.FULL):
                if not pool.free:
                    neighbours = [each for each in self.waiting if each.home is held.home]
                    self.slot_assignment.make_room(pool, neighbours, operations)
            started = self.fetch(held, Reason.NEED, operations, 1)
            assert started, f"there is no room for {held.key}"
        return operations

    def fetch(self, held: Holding, why: Reason, operations: Operations, victim_count: int = 1) -> bool:
        """Starts the read and the recovery that an expert lacks, if all slots can be assigned.

        Returns:
            Whether the slots were assigned.
        """
        assert held.home is not None
        missing, recovers = held.missing, self.form(held) is Residency.FULL
        had_e, had_sm = held.e_slot, held.sm_slot
        if not self.slot_assignment.place(held, self._lacking(held, missing, recovers), why, victim_count, operations):
            return False
        urgency = _URGENCIES[why]
        if missing:
            self._read(held, missing, urgency, operations)
        if recovers:
            self._recover(held, urgency, operations)
        if had_e or had_sm:
            self.slot_assignment.update_evictable(held)
        return True

    def fill(self, held: Holding, parts: Part, operations: Operations) -> int:
        """Starts a fill that reads missing parts of an expert into slots that `has_room` has found; returns its id."""
        assert held.home is not None
        placed = self.slot_assignment.place(held, held.home.lacking(parts), Reason.FILL, 1, operations)
        assert placed, f"there is no room for {held.key}"
        self._read(held, parts, Urgency.FILL, operations)
        self.slot_assignment.update_evictable(held)
        return held.read_id

    def read_ended(self, held: Holding, read: Read, error: Exception | None) -> None:
        """Marks the chunks of a read as valid, or frees its slots after an error."""
        assert held.home is not None
        held.read_id = 0
        if error is None:
            self._counters.reads[read.parts] += 1
            held.was_read(read.parts)
            return
        for pool, slot in ((held.home.e, read.e_slot), (held.home.sm, read.sm_slot)):
            if slot is not None:
                self.slot_assignment.vacate(held, pool)

    def recovery_ended(self, held: Holding, error: Exception | None, releases: list[Release]) -> None:
        """Marks the tensor as valid and the chunks as spare; after an error, frees the tensor slot.

        After an error of the recovery itself, chunks that are not in use are released as well.
        """
        home = held.home
        assert home is not None
        held.recover_id = 0
        if error is None:
            self._counters.recoveries += 1
            held.was_recovered()
            for pool in (home.e, home.sm):
                pool.spare.setdefault(held.index)
            return
        self.slot_assignment.vacate(held, home.tensor)
        held.unfit = isinstance(error, ResourceExhausted)
        sound = isinstance(error, (DeadlineExceeded, ResourceExhausted))
        if held.packed and held.pin is not Residency.PACKED and not sound:
            # Chunks that could not be recovered are read again next time. They are sound if the recovery did not begin
            # before its deadline, or if the weights need more bytes than a tensor slot has.
            releases += [Release(pool.kind, self.slot_assignment.drop(held, pool)) for pool in (home.e, home.sm)]

    def promote(self, held: Holding, why: Reason, operations: Operations) -> int:
        """Starts to recover a PACKED expert in the background.

        Returns:
            The operation's id; 0 if no tensor slot can be assigned.
        """
        assert held.home is not None
        if not self.slot_assignment.place(held, [held.home.tensor], why, 1, operations):
            return 0
        self._recover(held, _URGENCIES[why], operations)
        self.slot_assignment.update_evictable(held)
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
        """Returns the pools in which an expert lacks a slot that its fetch needs."""
        assert held.home is not None
        pools = held.home.lacking(missing)
        return (*pools, held.home.tensor) if recovers else pools

    def _next_id(self) -> int:
        self._last_operation += 1
        return self._last_operation
