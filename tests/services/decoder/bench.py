"""A fetch session over a real store, real arenas and real workers; only the store's service is played by the test."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING

from services.decoder.job import RecoverJob
from services.decoder.operations import FetchResult
from services.decoder.plan import recover_planner
from services.decoder.session import FetchSession, TensorOwner
from services.decoder.store_link import ChunkArena
from services.decoder.workers import WorkerPool
from services.expert_store.client import ArenaDescription, ReadResult
from tests.services.tiny_store import TinyStore, tensor_spans
from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.arena.lease import SlotTable
from zipmoe.codec import Codec, create_codec
from zipmoe.errors import ZipMoeError
from zipmoe.residency.base import Operations, Read, Recover
from zipmoe.store.reader import StoreReader
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from typing_extensions import Buffer


class GatedCodec:
    """A real codec whose recoveries wait at a gate; `arrived` gets the output size of each."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.gate = threading.Event()
        self.gate.set()
        self.arrived: SimpleQueue[int] = SimpleQueue()
        self.failure: Exception | None = None

    def recover(self, e_chunk: Buffer, sm: Buffer, out: memoryview) -> None:
        self.arrived.put(out.nbytes)
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self._codec.recover(e_chunk, sm, out)


class Bench:
    """One session, its slots, and what it has told the store and the router."""

    def __init__(self, store: TinyStore, workers: int, *, verify: bool) -> None:
        self.store = store
        manifest = store.manifest
        self.codec = GatedCodec(create_codec(manifest.codec_name, manifest.codec_parameters))
        self.reader = StoreReader(store.path, manifest)
        self.chunks = Arena.create("expert-store", manifest.max_record_bytes, 4, lock=False)
        self.tensors = Arena.create("decoder", manifest.max_tensor_bytes, 4, lock=False)
        fd = self.chunks.read_only_fd()
        self.view = ArenaView.open(fd, self.chunks.slot_bytes, self.chunks.slot_count)
        os.close(fd)
        self.ended: SimpleQueue[RecoverJob] = SimpleQueue()
        self.executor = ThreadPoolExecutor(workers, "recover")
        self.workers = WorkerPool(self.codec, self.executor, workers, self.ended.put)  # type: ignore[arg-type]
        self.workers.start()
        self.slots = SlotTable("decoder", self.tensors.epoch, 4)
        self.owner = TensorOwner(recover_planner(manifest), self.tensors, self.slots, self.workers, verify)
        self.sent: list[tuple[list[SlotRef], list[Read]]] = []
        self.reported: list[FetchResult] = []
        self.session = self.open("session 1")
        self.last_operation = 0

    def open(self, holder: str) -> FetchSession:
        description = ArenaDescription("expert-store", self.chunks.epoch, "", self.chunks.slot_bytes, 4)
        store = SimpleNamespace(send=lambda releases, reads: self.sent.append((list(releases), list(reads))))
        arena = ChunkArena(description, self.view)
        outbox = SimpleNamespace(put=self.reported.append, put_later=self.reported.append)
        return FetchSession(holder, self.owner, store, arena, outbox)  # type: ignore[arg-type]

    def chunk(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef("expert-store", self.chunks.epoch, slot, generation)

    def tensor(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef("decoder", self.tensors.epoch, slot, generation)

    def read(self, key: ExpertKey, ref: SlotRef, parts: Part = Part.ALL) -> Read:
        self.last_operation += 1
        return Read(self.last_operation, key, parts, ref)

    def recover(self, key: ExpertKey, chunk: SlotRef, tensor: SlotRef) -> Recover:
        self.last_operation += 1
        return Recover(self.last_operation, key, chunk, tensor)

    def apply(
        self,
        reads: tuple[Read, ...] = (),
        recoveries: tuple[Recover, ...] = (),
        chunk_releases: tuple[SlotRef, ...] = (),
        tensor_releases: tuple[SlotRef, ...] = (),
    ) -> None:
        self.session.begin(Operations(list(chunk_releases), list(tensor_releases), list(reads)))
        self.session.recover(recoveries)

    def finish_read(self, read: Read, error: ZipMoeError | None = None) -> None:
        """Plays the store: fills the slot and reports."""
        if error is None:
            with self.chunks.slot(read.chunk_slot.slot) as slot:
                self.reader.read(read.key, read.parts, slot)
        self.session.read_ended(ReadResult(read.operation_id, error, 10, 0.5))

    def pump(self, count: int = 1) -> None:
        """Plays the event loop: takes so many ended recoveries back from the workers."""
        for _ in range(count):
            self.session.recover_ended(self.ended.get())

    def report_of(self, operation: Read | Recover) -> FetchResult:
        (result,) = [result for result in self.reported if result.operation_id == operation.operation_id]
        return result

    def holds(self, slot: int, key: ExpertKey) -> bool:
        with self.tensors.slot(slot) as view:
            truth = self.store.experts[key]
            return all(view[begin:end] == truth[begin:end] for begin, end in tensor_spans(self.store.manifest, key))


@contextmanager
def bench(store: TinyStore, workers: int = 2, *, verify: bool = False) -> Iterator[Bench]:
    made = Bench(store, workers, verify=verify)
    try:
        yield made
    finally:
        made.codec.gate.set()
        made.workers.stop()
        made.executor.shutdown()
        made.reader.close()
        made.view.close()
        made.chunks.close()
        made.tensors.close()
