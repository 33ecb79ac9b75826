"""Least recently used, over both arenas."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence

from typing_extensions import override

from zipmoe.residency.base import ArenaSlots, Counters, Operations, Read, Recover, ResidencyPolicy, Usable
from zipmoe.residency.state import ExpertState, Move, Residency, read_move
from zipmoe.types import ExpertKey, Part, SlotRef


class SlotRing:
    """The slots of one arena, and who sits in them, least recently used first.

    A slot is free, or assigned to one expert. `busy` slots take part in an operation and are not offered for reuse.
    """

    def __init__(self, slots: ArenaSlots) -> None:
        self._slots = slots
        self._generation = slots.first_generation
        self._free = list(range(slots.slot_count - 1, -1, -1))
        self._owners: OrderedDict[ExpertKey, int] = OrderedDict()

    @property
    def free_count(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Slots that are assigned to an expert."""
        return len(self._owners)

    def owners(self) -> Sequence[ExpertKey]:
        """Experts that have a slot, least recently used first."""
        return tuple(self._owners)

    def touch(self, key: ExpertKey) -> None:
        """Marks an expert's slot as just used, if it has one."""
        if key in self._owners:
            self._owners.move_to_end(key)

    def assign(self, key: ExpertKey) -> SlotRef:
        """Gives a free slot to an expert, under a new generation."""
        slot = self._free.pop()
        self._owners[key] = slot
        self._generation += 1
        return SlotRef(self._slots.owner_id, self._slots.arena_epoch, slot, self._generation - 1)

    def vacate(self, key: ExpertKey) -> None:
        """Takes an expert's slot away."""
        self._free.append(self._owners.pop(key))


class LruPolicy(ResidencyPolicy):
    """Keeps the most recently used experts: recovered in the tensor arena, packed in the chunk arena.

    Both arenas are inclusive: an expert's chunks stay after its recovery until their slot is wanted, so that an expert
    that lost its tensor may still be recovered without a read. An expert is fetched only when both slots it wants are
    to be had at once, which is why waiting needs can never hold each other up: whoever waits holds nothing.
    """

    def __init__(self, chunk_slots: ArenaSlots, tensor_slots: ArenaSlots) -> None:
        assert chunk_slots.slot_count > 0 and tensor_slots.slot_count > 0
        self.counters = Counters()
        self._chunks = SlotRing(chunk_slots)
        self._tensors = SlotRing(tensor_slots)
        self._experts: dict[ExpertKey, ExpertState] = {}
        self._running: dict[int, Read | Recover] = {}
        self._busy_chunks: set[ExpertKey] = set()
        self._needed: set[ExpertKey] = set()
        self._waiting: deque[ExpertKey] = deque()
        self._usable: deque[ExpertKey] = deque()
        self._failure: Exception | None = None
        self._next_operation = 1

    # --- events -------------------------------------------------------------------------------------------------------

    @override
    def need(self, layer: int, expert_ids: Sequence[int]) -> Operations:
        for expert in expert_ids:
            key = ExpertKey(layer, expert)
            state = self._experts.setdefault(key, ExpertState(key))
            self._needed.add(key)
            self._tensors.touch(key)
            self._chunks.touch(key)
            if state.residency is Residency.FULL:
                self.counters.full_hits += 1
                self._make_usable(state)
            else:
                if state.residency is Residency.PACKED:
                    self.counters.packed_hits += 1
                else:
                    self.counters.misses += 1
                if state.tensor_slot is None:
                    self._waiting.append(key)
        return self._fetch_waiting(Operations())

    @override
    def next_usable(self) -> Usable | None:
        if self._failure is not None:
            raise self._failure
        if not self._usable:
            return None
        state = self._experts[self._usable.popleft()]
        assert state.tensor_slot is not None and state.has_tensor
        return Usable(state.key, state.tensor_slot)

    @override
    def done(self, key: ExpertKey) -> Operations:
        self._experts[key].pins -= 1
        self._needed.discard(key)
        return self._fetch_waiting(Operations())

    @override
    def completed(self, operation_id: int, error: Exception | None) -> Operations:
        operation = self._running.pop(operation_id)
        state = self._experts[operation.key]
        operations = Operations()
        if isinstance(operation, Read):
            self._read_ended(state, operation, error)
        else:
            self._recovery_ended(state, error, operations)
        return self._fetch_waiting(operations)

    @override
    def abandon(self) -> Operations:
        for key in self._usable:
            self._experts[key].pins -= 1
        self._usable.clear()
        self._waiting.clear()
        self._needed.clear()
        self._failure = None
        return Operations()

    # --- state --------------------------------------------------------------------------------------------------------

    @override
    def residency(self, key: ExpertKey) -> Residency:
        state = self._experts.get(key)
        return Residency.ABSENT if state is None else state.residency

    @override
    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        states = list(self._experts.values())  # in one step of the interpreter: the model's thread may add to them
        counts = Counter((state.key.layer, state.residency) for state in states)
        return Counter({place: count for place, count in counts.items() if place[1] is not Residency.ABSENT})

    @override
    def slot_counts(self) -> dict[str, int]:
        loading = sum(isinstance(operation, Read) for operation in self._running.values())
        recovering = len(self._running) - loading
        return {
            "full": self._tensors.used_count - recovering,
            "packed": self._chunks.used_count - loading,
            "loading": loading,
            "recovering": recovering,
            "free": self._chunks.free_count + self._tensors.free_count,
        }

    def __repr__(self) -> str:
        def word(key: ExpertKey) -> str:
            state = self._experts[key]
            mark = "*" if state.pins else "~" if state.pending.value != "none" else ""
            return f"{key.layer}.{key.expert}{mark}"

        tensors = " ".join(word(key) for key in self._tensors.owners())
        chunks = " ".join(word(key) for key in self._chunks.owners())
        waiting = " ".join(f"{key.layer}.{key.expert}" for key in self._waiting)
        return f"full[{tensors}] packed[{chunks}] waiting[{waiting}] running={len(self._running)}"

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _make_usable(self, state: ExpertState) -> None:
        state.pins += 1
        self._usable.append(state.key)

    def _fetch_waiting(self, operations: Operations) -> Operations:
        """Starts as many waiting fetches as there are slots for, in the order of need."""
        while self._waiting and self._fetch(self._experts[self._waiting[0]], operations):
            self._waiting.popleft()
        return operations

    def _fetch(self, state: ExpertState, operations: Operations) -> bool:
        reads = state.chunk_slot is None
        tensor_victim = self._tensor_victim()
        chunk_victim = self._chunk_victim() if reads else None
        if not (self._tensors.free_count or tensor_victim):
            return False
        if reads and not (self._chunks.free_count or chunk_victim):
            return False
        if not self._tensors.free_count:
            assert tensor_victim is not None
            self._drop_tensor(tensor_victim, operations)
        if reads:
            if not self._chunks.free_count:
                assert chunk_victim is not None
                self._drop_chunks(chunk_victim, operations)
            state.chunk_slot = self._chunks.assign(state.key)
            operations.reads.append(Read(self._operation_id(), state.key, Part.ALL, state.chunk_slot))
            self._running[operations.reads[-1].operation_id] = operations.reads[-1]
        state.tensor_slot = self._tensors.assign(state.key)
        self._busy_chunks.add(state.key)
        assert state.chunk_slot is not None
        operations.recoveries.append(Recover(self._operation_id(), state.key, state.chunk_slot, state.tensor_slot))
        self._running[operations.recoveries[-1].operation_id] = operations.recoveries[-1]
        return True

    def _tensor_victim(self) -> ExpertState | None:
        for key in self._tensors.owners():
            state = self._experts[key]
            if state.has_tensor and not state.pins:
                return state
        return None

    def _chunk_victim(self) -> ExpertState | None:
        wanted: ExpertState | None = None
        for key in self._chunks.owners():
            state = self._experts[key]
            if key in self._busy_chunks or state.parts is not Part.ALL:
                continue
            if key not in self._needed or state.has_tensor:
                return state
            wanted = wanted or state
        return wanted

    def _drop_tensor(self, state: ExpertState, operations: Operations) -> None:
        assert state.tensor_slot is not None
        operations.tensor_releases.append(state.tensor_slot)
        self._tensors.vacate(state.key)
        state.move(Move.DROP_TENSOR)
        self.counters.evictions += 1

    def _drop_chunks(self, state: ExpertState, operations: Operations) -> None:
        assert state.chunk_slot is not None
        operations.chunk_releases.append(state.chunk_slot)
        self._chunks.vacate(state.key)
        state.move(Move.DROP_CHUNKS)

    # --- completions --------------------------------------------------------------------------------------------------

    def _read_ended(self, state: ExpertState, operation: Read, error: Exception | None) -> None:
        if error is None:
            state.move(read_move(operation.parts))
        else:
            self._chunks.vacate(state.key)
            state.chunk_slot = None
            self._fail(state, error)

    def _recovery_ended(self, state: ExpertState, error: Exception | None, operations: Operations) -> None:
        self._busy_chunks.discard(state.key)
        if error is None:
            state.move(Move.RECOVER)
            if state.key in self._needed:
                self._make_usable(state)
        else:
            self._tensors.vacate(state.key)
            state.tensor_slot = None
            if state.parts is Part.ALL:
                self._drop_chunks(state, operations)  # what could not be recovered once is read afresh next time
            self._fail(state, error)

    def _fail(self, state: ExpertState, error: Exception) -> None:
        if state.key in self._needed and self._failure is None:
            self._failure = error

    def _operation_id(self) -> int:
        self._next_operation += 1
        return self._next_operation - 1
