"""A simulated decoder for policies: obeys operations in any order and checks what the real owners would refuse."""

from __future__ import annotations

from zipmoe.residency.base import ArenaSlots, Operations, Read, Recover, ResidencyPolicy, Usable
from zipmoe.types import ExpertKey, Part, SlotRef

CHUNK_OWNER, TENSOR_OWNER = "store", "decoder"


def arena_slots(owner: str, count: int) -> ArenaSlots:
    return ArenaSlots(owner, 7, count, 1)


class SimulatedExecutor:
    """Holds what each slot contains; every broken rule is an assertion error."""

    def __init__(self) -> None:
        self.generations: dict[tuple[str, int], int] = {}
        self.held: dict[SlotRef, ExpertKey | None] = {}
        self.parts: dict[SlotRef, Part] = {}
        self.running: dict[int, Read | Recover] = {}
        self.failed_slots: set[SlotRef] = set()
        self.readers: set[SlotRef] = set()
        self.messages = 0
        self.reads = 0

    def send(self, operations: Operations) -> None:
        if not operations:
            return
        self.messages += 1
        for ref in operations.chunk_releases + operations.tensor_releases:
            assert ref in self.held, f"released {ref}, which is not held"
            assert ref not in self.readers, f"released {ref} under a reader"
            users = [op for op in self.running.values() if isinstance(op, Recover) and op.chunk_slot == ref]
            assert not users, f"released {ref} under a recovery"
            del self.held[ref]
        for read in operations.reads:
            self.reads += 1
            self._begin_write(read.chunk_slot)
            self.running[read.operation_id] = read
        for recovery in operations.recoveries:
            self._begin_write(recovery.tensor_slot)
            self.running[recovery.operation_id] = recovery

    def _begin_write(self, ref: SlotRef) -> None:
        place = (ref.owner_id, ref.slot)
        assert ref.generation > self.generations.get(place, 0), f"{ref} is stale"
        assert not any((held.owner_id, held.slot) == place for held in self.held), f"{ref} overwrites a held slot"
        self.generations[place] = ref.generation
        self.held[ref] = None

    def ready(self) -> list[int]:
        """Operations that may end now: all reads, and recoveries whose chunks are there or have failed."""
        return [
            operation_id
            for operation_id, operation in self.running.items()
            if isinstance(operation, Read)
            or operation.chunk_slot in self.failed_slots
            or self.held.get(operation.chunk_slot) == operation.key
        ]

    def end(self, operation_id: int, error: Exception | None = None) -> Exception | None:
        """Ends one operation; a recovery of a slot whose read failed fails as well. Returns the error to report."""
        operation = self.running.pop(operation_id)
        if isinstance(operation, Recover) and operation.chunk_slot in self.failed_slots:
            error = error or RuntimeError("read failed")
        ref = operation.chunk_slot if isinstance(operation, Read) else operation.tensor_slot
        if error is None:
            self.held[ref] = operation.key
        else:
            del self.held[ref]
            if isinstance(operation, Read):
                self.failed_slots.add(ref)
        return error

    def begin_use(self, usable: Usable) -> None:
        assert self.held.get(usable.tensor_slot) == usable.key, f"{usable.key} is not in {usable.tensor_slot}"
        self.readers.add(usable.tensor_slot)

    def end_use(self, usable: Usable) -> None:
        self.readers.discard(usable.tensor_slot)


def run_layer(policy: ResidencyPolicy, executor: SimulatedExecutor, layer: int, experts: list[int]) -> list[int]:
    """Runs one layer pass to its end, ending operations first in, first out; returns the order of computation."""
    order: list[int] = []
    executor.send(policy.need(layer, experts))
    while len(order) < len(experts):
        usable = policy.next_usable()
        if usable is None:
            operation_id = executor.ready()[0]
            error = executor.end(operation_id)
            executor.send(policy.completed(operation_id, error))
            continue
        executor.begin_use(usable)
        order.append(usable.key.expert)
        executor.end_use(usable)
        executor.send(policy.done(usable.key))
    return order
