"""The session of a decoder beside the leases of its store, both real; all around them is played by a test."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

from tests.services.decoder.played_disk import PlayedDisk
from tests.services.decoder.played_workers import PlayedWorkers
from zipmoe.arena.description import ArenaDescription
from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.arena.tensor_form import TensorRoom
from zipmoe.errors import NotFound
from zipmoe.process.job import JobEvent
from zipmoe.residency.pools import Completed, Operations, Pool
from zipmoe.services.decoder.plan import RecoverUnit, RowsPlace
from zipmoe.services.decoder.session import RouterSession, TensorOwner
from zipmoe.services.decoder.store_link import MappedArena, StoreArenas
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.types import ExpertKey, Part, SlotRef

EXPERTS = (ExpertKey(0, 0), ExpertKey(0, 1))
TENSOR_COUNT = 2  # of an expert; each is one request to the disk and one E-chunk

PASSED_S = 0.0
"""A deadline that has passed; what has no deadline is never late."""


class Memory:
    """An arena whose slots show who they are: all bytes of a slot are `byte_of(index)`."""

    def __init__(self, owner_id: str, slot_count: int, first_byte: int) -> None:
        self.owner_id, self.epoch = owner_id, 7
        self.slot_bytes, self.slot_count = TENSOR_COUNT, slot_count
        self._first_byte = first_byte

    def byte_of(self, index: int) -> int:
        return self._first_byte + index

    def slot(self, index: int) -> memoryview:
        return memoryview(bytearray([self.byte_of(index)]) * self.slot_bytes)


class PlayedServices:
    """Two sessions, one at the other, with two streams between them.

    Attributes:
        tables: the leases of all three arenas.
        linked: whether the session at the store lasts.
        sent: what the decoder has sent to the store since somebody looked.
        down: what of it the store has not received.
        up: what the store has reported and the decoder has not received.
        reports: what the decoder has reported to the router.
    """

    def __init__(self, slot_counts: dict[Pool, int]) -> None:
        self.memory = {
            pool: Memory(pool.value, count, 16 * number) for number, (pool, count) in enumerate(slot_counts.items())
        }
        self.disk, self.workers = PlayedDisk(is_late), PlayedWorkers(is_late)
        chunks = self.memory[Pool.E], self.memory[Pool.SM]
        self._store = ReadSessions(*chunks, self.disk, _plan_read)  # type: ignore[arg-type]
        tensors = LeasedArena.of(self.memory[Pool.TENSOR])  # type: ignore[arg-type]
        self.tables = {**{pool: arena.slots for pool, arena in self._store.pools.items()}, Pool.TENSOR: tensors.slots}
        self._owner = TensorOwner(_plan_recovery, tensors, self.workers, self.workers, verify=False)  # type: ignore[arg-type]
        self._arenas = StoreArenas(*map(_map, chunks))
        self._number = 0
        self.open()

    def open(self) -> None:
        """Opens a session of both."""
        self._number += 1
        self.holder = f"session {self._number}"
        self.linked = True
        self.sent: list[Operations] = []
        self.down: deque[Operations] = deque()
        self.up: deque[Completed] = deque()
        self.reports: list[Completed] = []
        outbox = SimpleNamespace(put=self.reports.append, put_later=self.reports.append)
        stream = SimpleNamespace(send=self._send)
        self.session = RouterSession(self.holder, self._owner, stream, self._arenas, outbox)  # type: ignore[arg-type]

    def close_store(self) -> None:
        """The store ends its session; what is under way between the two is lost."""
        self.linked = False
        self.down.clear()
        self.up.clear()
        self._store.close(self.holder)

    def store_applies(self) -> list[int]:
        """The store receives a message; returns the refused reads, which are reported at once."""
        refused = self._store.apply(self.holder, self.down.popleft())
        self.up.extend(refused)
        return [_refusal_of(result) for result in refused]

    def refused(self) -> list[int]:
        """Takes the reports of the decoder, all of refusals; returns the operations."""
        refused = [_refusal_of(result) for result in self.reports]
        self.reports.clear()
        return refused

    def disk_reports(self) -> JobEvent[ReadJob]:
        """The store receives a report of the disk and passes it on while the session lasts."""
        event = self.disk.events.popleft()
        first = Completed(event.job.read.operation_id, None, first_tensor_only=True)
        result = self._store.ended(event.job) if event.ended else first
        if self.linked and event.job.holder == self.holder:
            self.up.append(result)
        return event

    def state(self) -> list[str]:
        """All leases, and the decoder's chunk slots with their pins."""
        chunks = [
            f"{chunk.ref}: {chunk.key} {chunk.stage.name} {chunk.pin_count} {chunk.released} {len(chunk.waiting)}"
            for slots in self.session._chunks.values()
            for chunk in slots._slots.values()
        ]
        return [repr(table) for table in self.tables.values()] + sorted(chunks)

    def pins(self) -> dict[tuple[Pool, SlotRef], int]:
        """The chunk slots that the decoder knows, and the number of their pins."""
        arenas = self.session._chunks.items()
        return {(pool, chunk.ref): chunk.pin_count for pool, chunks in arenas for chunk in chunks._slots.values()}

    def _send(self, operations: Operations) -> None:
        self.sent.append(operations)
        if self.linked:
            self.down.append(operations)


def _refusal_of(result: Completed) -> int:
    assert result.error is not None and not result.first_tensor_only
    return result.operation_id


def is_late(begin_by_s: float) -> bool:
    return begin_by_s <= PASSED_S


def _map(memory: Memory) -> MappedArena:
    description = ArenaDescription(memory.owner_id, memory.epoch, "", memory.slot_bytes, memory.slot_count)
    return MappedArena(description, memory)  # type: ignore[arg-type]


def _plan_read(key: ExpertKey, parts: Part) -> SimpleNamespace:
    _check_known(key)
    return SimpleNamespace(requests=range(TENSOR_COUNT), sizes=(1,) * TENSOR_COUNT, first_tensor=frozenset([0]))


def _plan_recovery(key: ExpertKey) -> SimpleNamespace:
    _check_known(key)
    places = [slice(tensor, tensor + 1) for tensor in range(TENSOR_COUNT)]
    units = tuple(RecoverUnit(tensor, (RowsPlace(1, place, place),), place) for tensor, place in enumerate(places))
    rooms = tuple(TensorRoom(tensor, tensor + 1, 1, 1) for tensor in range(TENSOR_COUNT))
    return SimpleNamespace(units=units, unit_counts=(1,) * TENSOR_COUNT, rooms=rooms)


def _check_known(key: ExpertKey) -> None:
    if key not in EXPERTS:
        raise NotFound(str(key))
