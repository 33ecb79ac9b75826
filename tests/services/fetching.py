"""A router for tests: a fetch session with slots, generations and operation ids managed."""

from __future__ import annotations

from collections.abc import Iterable
from queue import SimpleQueue
from typing import TYPE_CHECKING

from services.decoder.client import FetchEvent, FetchResult, FetchSession, FetchSessionLost
from tests.services.tiny_store import TinyStore, tensor_spans
from zipmoe.arena.broker import receive_arena
from zipmoe.errors import ZipMoeError
from zipmoe.residency.base import Read, Recover
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from typing_extensions import Self

EVENT_TIMEOUT_S = 30.0


class Router:
    """Reads expert n of a list into chunk slot n and recovers it into tensor slot n."""

    def __init__(self, target: str, store: TinyStore) -> None:
        self.store = store
        self.events: SimpleQueue[FetchEvent] = SimpleQueue()
        self.session = FetchSession.open(target, self.events.put)
        self.chunks, self.tensors = self.session.description.chunk_arena, self.session.description.tensor_arena
        self.generation = max(self.session.first_chunk_generation, self.session.first_tensor_generation)
        self.view = receive_arena(self.tensors.broker_path, expected_epoch=self.tensors.arena_epoch, timeout_s=10.0)
        self.operation_id = 0
        self.held: list[tuple[SlotRef, SlotRef]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.session.close()
        self.view.close()

    def chunk(self, slot: int, generation: int) -> SlotRef:
        return SlotRef(self.chunks.owner_id, self.chunks.arena_epoch, slot, generation)

    def tensor(self, slot: int, generation: int) -> SlotRef:
        return SlotRef(self.tensors.owner_id, self.tensors.arena_epoch, slot, generation)

    def next_id(self) -> int:
        self.operation_id += 1
        return self.operation_id

    def fetch(self, keys: Iterable[ExpertKey]) -> dict[int, ExpertKey]:
        """Sends one batch: releases what the last one left, fetches these. Returns operation id -> expert."""
        reads, recoveries, operations = [], [], {}
        releases, self.held = self.held, []
        for slot, key in enumerate(keys):
            chunk, tensor = self.chunk(slot, self.generation), self.tensor(slot, self.generation)
            self.held.append((chunk, tensor))
            reads.append(Read(self.next_id(), key, Part.ALL, chunk))
            operations[self.operation_id] = key
            recoveries.append(Recover(self.next_id(), key, chunk, tensor))
            operations[self.operation_id] = key
        self.generation += 1
        self.session.send([chunk for chunk, _ in releases], [tensor for _, tensor in releases], reads, recoveries)
        return operations

    def next_event(self) -> FetchEvent:
        return self.events.get(timeout=EVENT_TIMEOUT_S)

    def next_result(self) -> FetchResult:
        event = self.next_event()
        assert isinstance(event, FetchResult), event
        return event

    def results(self, operations: Iterable[int]) -> dict[int, ZipMoeError | None]:
        """Waits until all of these operations have ended; returns their errors."""
        missing = set(operations)
        errors: dict[int, ZipMoeError | None] = {}
        while missing:
            result = self.next_result()
            missing.remove(result.operation_id)
            errors[result.operation_id] = result.error
        return errors

    def lost(self) -> ZipMoeError:
        """Skips results until the session is lost; returns why."""
        while True:
            event = self.next_event()
            if isinstance(event, FetchSessionLost):
                return event.error

    def holds(self, slot: int, key: ExpertKey) -> bool:
        """Whether a tensor slot holds an expert, byte for byte."""
        truth = self.store.experts[key]
        with self.view.slot(slot) as view:
            return all(view[begin:end] == truth[begin:end] for begin, end in tensor_spans(self.store.manifest, key))
