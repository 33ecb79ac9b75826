"""A router for tests: a fetch session with slots, generations and operation ids managed."""

from __future__ import annotations

from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from tests.services.tiny_store import TinyStore, tensor_spans
from zipmoe.arena.broker import receive_arena
from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, SessionLost, Urgency
from zipmoe.services.decoder.client import FetchEvent, FetchSession
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from typing import Self

EVENT_TIMEOUT_S = 30.0


class Router:
    """Reads expert n of a list into slot n of both chunk arenas and recovers it into tensor slot n."""

    def __init__(self, target: str, store: TinyStore) -> None:
        self.store = store
        self.events: SimpleQueue[FetchEvent] = SimpleQueue()
        self.session = FetchSession.open(target, self.events.put)
        described = self.session.description
        assert described.tensor_arena is not None
        self.e_chunks, self.sm_chunks, self.tensors = described.e_arena, described.sm_arena, described.tensor_arena
        self.generation = max(self.session.first_generations)
        self.view = receive_arena(self.tensors.broker_path, expected_epoch=self.tensors.arena_epoch, timeout_s=10.0)
        self.operation_id = 0
        self.held: list[Release] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.session.close()
        self.view.close()

    def e_slot(self, slot: int, generation: int) -> SlotRef:
        return SlotRef(self.e_chunks.owner_id, self.e_chunks.arena_epoch, slot, generation)

    def sm_slot(self, slot: int, generation: int) -> SlotRef:
        return SlotRef(self.sm_chunks.owner_id, self.sm_chunks.arena_epoch, slot, generation)

    def tensor(self, slot: int, generation: int) -> SlotRef:
        return SlotRef(self.tensors.owner_id, self.tensors.arena_epoch, slot, generation)

    def read(self, operation_id: int, key: ExpertKey, slot: int, generation: int) -> Read:
        """A read of the whole expert."""
        e_slot, sm_slot = self.e_slot(slot, generation), self.sm_slot(slot, generation)
        return Read(operation_id, key, Part.ALL, e_slot, sm_slot, Urgency.NEEDED)

    def recover(self, operation_id: int, key: ExpertKey, slot: int, generation: int, tensor: SlotRef) -> Recover:
        """A recovery from what `read` filled."""
        e_slot, sm_slot = self.e_slot(slot, generation), self.sm_slot(slot, generation)
        return Recover(operation_id, key, e_slot, sm_slot, tensor, Urgency.NEEDED)

    def next_id(self) -> int:
        self.operation_id += 1
        return self.operation_id

    def fetch(self, keys: Iterable[ExpertKey]) -> dict[int, ExpertKey]:
        """Sends one batch: releases what the last one left, fetches these. Returns operation id -> expert."""
        batch = Operations(releases=self.held)
        self.held = []
        operations = {}
        generation = self.generation
        for slot, key in enumerate(keys):
            tensor = self.tensor(slot, generation)
            batch.reads.append(self.read(self.next_id(), key, slot, generation))
            operations[self.operation_id] = key
            batch.recoveries.append(self.recover(self.next_id(), key, slot, generation, tensor))
            operations[self.operation_id] = key
            self.held += [
                Release(Pool.E, self.e_slot(slot, generation)),
                Release(Pool.SM, self.sm_slot(slot, generation)),
                Release(Pool.TENSOR, tensor),
            ]
        self.generation += 1
        self.session.send(batch)
        return operations

    def next_event(self) -> FetchEvent:
        return self.events.get(timeout=EVENT_TIMEOUT_S)

    def next_result(self) -> Completed:
        event = self.next_event()
        assert isinstance(event, Completed), event
        return event

    def results(self, operations: Iterable[int]) -> dict[int, ZipMoeError | None]:
        """Waits until all of these operations have ended; returns their errors."""
        missing = set(operations)
        errors: dict[int, ZipMoeError | None] = {}
        while missing:
            result = self.next_result()
            if not result.first_tensor_only:
                missing.remove(result.operation_id)
                errors[result.operation_id] = result.error
        return errors

    def lost(self) -> ZipMoeError:
        """Skips results until the session is lost; returns why."""
        while True:
            event = self.next_event()
            if isinstance(event, SessionLost):
                return event.error

    def holds(self, slot: int, key: ExpertKey) -> bool:
        """Whether a tensor slot holds an expert, byte for byte."""
        truth = self.store.experts[key]
        with self.view.slot(slot) as view:
            return all(view[begin:end] == truth[begin:end] for begin, end in tensor_spans(self.store.manifest, key))
