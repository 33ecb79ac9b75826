"""Simulated decoders for the brain: they obey operations in any order and check what the real owners would refuse."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from zipmoe.errors import CorruptData
from zipmoe.residency.brain import Brain, BrainSettings
from zipmoe.residency.policies.registry import create_policy
from zipmoe.residency.pools import DecoderSlots, Grid, Operations, Phase, Pool, PoolSlots, Read, Recover, Usable
from zipmoe.residency.scheduler import FifoScheduler
from zipmoe.residency.state import Residency
from zipmoe.types import ExpertKey, SlotRef

Place = tuple[Pool, SlotRef]


def decoder_slots(name: str, e: int, sm: int, tensor: int = 0, epoch: int = 1) -> DecoderSlots:
    counts = {Pool.E: e, Pool.SM: sm, Pool.TENSOR: tensor}
    return DecoderSlots(name, 2, [PoolSlots(pool, name, epoch, count, 1) for pool, count in counts.items()])


def make_brain(
    e: int,
    sm: int,
    tensor: int = 0,
    *,
    policy: str = "lru",
    grid: Grid | None = None,
    packed_rows: int = 1 << 30,
    transient_slots: int = 8,
    decoders: Sequence[str] = ("a",),
) -> Brain:
    brain = Brain(
        create_policy(policy, grid or Grid(2, 8)),
        FifoScheduler(),
        BrainSettings(packed_rows=packed_rows, transient_slots=transient_slots),
    )
    for name in decoders:
        brain.join(decoder_slots(name, e, sm, tensor))
    return brain


def residencies(brain: Brain, grid: Grid) -> dict[ExpertKey, Residency]:
    """The state of every expert, by the slots that the description of the brain shows as valid."""
    held: dict[str, set[Pool]] = {}
    for kind, experts in re.findall(r"\b(e|sm|tensor)\[([^]]*)\]", repr(brain)):
        for expert in experts.split():
            if "~" not in expert:
                held.setdefault(expert.rstrip("*?-"), set()).add(Pool(kind))
    keys = map(grid.key, range(grid.size))
    return {key: residency_of(held.get(f"{key.layer}.{key.expert}", set())) for key in keys}


def residency_of(pools: set[Pool]) -> Residency:
    if Pool.TENSOR in pools:
        return Residency.FULL
    if pools == {Pool.E, Pool.SM}:
        return Residency.PACKED
    return {Pool.E: Residency.E_ONLY, Pool.SM: Residency.SM_ONLY}[pools.pop()] if pools else Residency.ABSENT


class PooledExecutor:
    """Holds what each slot contains; every broken rule is an assertion error."""

    def __init__(self) -> None:
        self.generations: dict[tuple[Pool, str, int, int], int] = {}
        self.held: dict[Place, ExpertKey | None] = {}
        self.running: dict[int, Read | Recover] = {}
        self.damaged: set[Place] = set()
        self.cancelled: set[int] = set()
        self.readers: set[Place] = set()
        self.orphans: set[Place] = set()

    def send(self, operations: Operations) -> None:
        for operation_id in operations.cancels:
            assert isinstance(self.running.get(operation_id), Read), "cancelled what is no read under way"
            self.cancelled.add(operation_id)
        for place in operations.releases:
            assert self.held.get((place.pool, place.slot)) is not None, f"released {place}, which holds nothing valid"
            assert (place.pool, place.slot) not in self.readers, f"released {place} under a reader"
            for operation in self.running.values():
                assert not (isinstance(operation, Recover) and place.slot in sources(operation, place.pool)), place
            del self.held[place.pool, place.slot]
        for read in operations.reads:
            for each in written(read):
                self._begin_write(each)
            self.running[read.operation_id] = read
        for recovery in operations.recoveries:
            self._begin_write((Pool.TENSOR, recovery.tensor_slot))
            self.running[recovery.operation_id] = recovery

    def _begin_write(self, place: Place) -> None:
        pool, ref = place
        where = (pool, ref.owner_id, ref.arena_epoch, ref.slot)
        assert ref.generation > self.generations.get(where, 0), f"{ref} is stale"
        for other, held in self.held:
            same = (other, held.owner_id, held.arena_epoch, held.slot) == where
            assert not same, f"{ref} overwrites a slot that is held"
        self.generations[where] = ref.generation
        self.held[place] = None

    def ready(self) -> list[int]:
        """Operations that may end now: all reads, and recoveries whose chunks are there or have failed."""
        return [
            operation_id
            for operation_id, operation in self.running.items()
            if isinstance(operation, Read)
            or self._lacks_chunks(operation)
            or all(self.held.get(place) == operation.key for place in chunks(operation))
        ]

    def beginnable(self) -> list[int]:
        """Operations whose first tensor may be there now: recoveries follow their reads tensor by tensor."""
        return [
            number for number, each in self.running.items() if isinstance(each, Read) or not self._lacks_chunks(each)
        ]

    def _lacks_chunks(self, recovery: Recover) -> bool:
        return any(place in self.damaged for place in chunks(recovery))

    def end(self, operation_id: int, error: Exception | None = None) -> Exception | None:
        """Ends an operation; returns the error to report."""
        operation = self.running.pop(operation_id)
        if isinstance(operation, Recover) and self._lacks_chunks(operation):
            error = error or CorruptData("its chunks were not read")
        for place in written(operation):
            if error is None:
                self.held[place] = operation.key
            else:
                del self.held[place]
                self.damaged.add(place)
        return error

    def lose(self, name: str) -> None:
        """A decoder goes: readers keep its mapping, everything else is gone."""
        self.running = {
            number: operation for number, operation in self.running.items() if written(operation)[0][1].owner_id != name
        }
        self.held = {place: key for place, key in self.held.items() if place[1].owner_id != name}
        self.orphans |= {place for place in self.readers if place[1].owner_id == name}

    def begin_use(self, usable: Usable) -> None:
        for place in used_places(usable):
            there = self.held.get(place) == usable.key
            if usable.complete:
                assert there, f"{usable.key} is not in {place}"
            else:  # some of it may be there already, the rest is being written
                assert there or any(place in written(operation) for operation in self.running.values()), place
            self.readers.add(place)

    def check_whole(self, usable: Usable) -> None:
        """What was begun with its first tensor is there now, or its decoder has gone."""
        for place in used_places(usable):
            assert self.held.get(place) == usable.key or place in self.orphans, f"{usable.key} is not all in {place}"

    def end_use(self, usable: Usable) -> None:
        self.readers -= set(used_places(usable))
        self.orphans -= set(used_places(usable))


def written(operation: Read | Recover) -> list[Place]:
    if isinstance(operation, Recover):
        return [(Pool.TENSOR, operation.tensor_slot)]
    slots = ((Pool.E, operation.e_slot), (Pool.SM, operation.sm_slot))
    return [(pool, slot) for pool, slot in slots if slot is not None]


def chunks(recovery: Recover) -> list[Place]:
    return [(Pool.E, recovery.e_slot), (Pool.SM, recovery.sm_slot)]


def sources(recovery: Recover, pool: Pool) -> list[SlotRef]:
    return [slot for each, slot in chunks(recovery) if each is pool]


def used_places(usable: Usable) -> list[Place]:
    slots = ((Pool.TENSOR, usable.tensor_slot), (Pool.E, usable.e_slot), (Pool.SM, usable.sm_slot))
    places = [(pool, slot) for pool, slot in slots if slot is not None]
    expected = [Pool.TENSOR] if usable.form is Residency.FULL else [Pool.E, Pool.SM]
    assert [pool for pool, _ in places] == expected
    return places


def run_layer(
    brain: Brain, executor: PooledExecutor, layer: int, rows: Mapping[int, int] | Sequence[int]
) -> list[tuple[int, Residency]]:
    """Runs one pass through a layer, ending operations first in, first out; returns the order of computation."""
    rows = rows if isinstance(rows, Mapping) else dict.fromkeys(rows, 1)
    order: list[tuple[int, Residency]] = []
    executor.send(brain.need(layer, rows))
    while len(order) < len(rows):
        usable = brain.next_usable()
        if usable is None:
            operation_id = executor.ready()[0]
            executor.send(brain.completed(operation_id, executor.end(operation_id)))
            continue
        executor.begin_use(usable)
        order.append((usable.key.expert, usable.form))
        executor.end_use(usable)
        executor.send(brain.done(usable.key))
    return order


def prefill(brain: Brain, executor: PooledExecutor, layer: int, rows: Mapping[int, int] | Sequence[int]) -> None:
    brain.step(Phase.PREFILL, 512)
    run_layer(brain, executor, layer, rows)
    brain.step(Phase.DECODE, 1)
