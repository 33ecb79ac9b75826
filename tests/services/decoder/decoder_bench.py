"""A fetch session over a real store, real arenas and real workers; only the store's service is played by the test."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tests.services.slots import ChunkArenas
from tests.services.tiny_store import TinyStore, tensor_spans
from zipmoe.arena.arena import Arena, ArenaView
from zipmoe.arena.description import ArenaDescription
from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.arena.tensor_form import BF16, TensorForm
from zipmoe.codec.base import Codec
from zipmoe.codec.registry import create_codec
from zipmoe.errors import ZipMoeError
from zipmoe.planning.memory_split import slot_bytes
from zipmoe.process.job import JobEvent
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed, Operations, Pool, Read, Recover, Release, Urgency
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.decoder.plan import recover_planner
from zipmoe.services.decoder.recovered_form import recovered_form
from zipmoe.services.decoder.session import RouterSession, TensorOwner
from zipmoe.services.decoder.store_link import MappedArena, StoreArenas
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import ExpertKey, Part, SlotRef

if TYPE_CHECKING:
    from typing_extensions import Buffer

SLOTS = 4


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


class DecoderBench:
    """One session, its slots, and what it has told the store and the router."""

    def __init__(
        self, store: TinyStore, workers: int, *, verify: bool, has_tensors: bool, tensor_form: TensorForm
    ) -> None:
        self.store = store
        manifest = store.manifest
        self.codec = GatedCodec(create_codec(manifest.codec_name, manifest.codec_parameters))
        self.reader = StoreReader(store.path, manifest)
        self.chunks = ChunkArenas(manifest, SLOTS)
        self.tensors = Arena.create("decoder", slot_bytes(manifest, tensor_form).tensor, SLOTS, lock=False)
        self.arenas = StoreArenas(_map(self.chunks.e), _map(self.chunks.sm))
        self.events: SimpleQueue[JobEvent[RecoverJob]] = SimpleQueue()
        self.executor = ThreadPoolExecutor(workers, "recover")
        self.workers = TaskPool(RecoverJob.recover, self.executor, workers, self.events.put)
        self.workers.start()
        leased = LeasedArena.of(self.tensors)
        self.slots = leased.slots
        form = recovered_form(tensor_form, manifest, self.codec)  # type: ignore[arg-type]
        tensors = leased if has_tensors else None
        self.owner = TensorOwner(recover_planner(manifest, tensor_form), tensors, self.workers, form, verify)
        self.sent: list[Operations] = []
        self.reported: list[Completed] = []
        self.session = self.open("session 1")
        self.last_operation = 0

    def open(self, holder: str) -> RouterSession:
        store = SimpleNamespace(send=self.sent.append)
        outbox = SimpleNamespace(put=self.reported.append, put_later=self.reported.append)
        return RouterSession(holder, self.owner, store, self.arenas, outbox)  # type: ignore[arg-type]

    def tensor(self, slot: int, generation: int = 1) -> SlotRef:
        return SlotRef("decoder", self.tensors.epoch, slot, generation)

    def read(self, key: ExpertKey, slot: int, generation: int = 1, parts: Part = Part.ALL) -> Read:
        self.last_operation += 1
        return self.chunks.read(self.last_operation, key, slot, generation, parts=parts)

    def recover(
        self,
        key: ExpertKey,
        slot: int,
        tensor: SlotRef,
        generation: int = 1,
        *,
        e_slot: SlotRef | None = None,
        urgency: Urgency = Urgency.NEEDED,
    ) -> Recover:
        """From slot `slot` of both chunk arenas; or from another E slot."""
        self.last_operation += 1
        e_slot = e_slot or self.chunks.e_ref(slot, generation)
        return Recover(self.last_operation, key, e_slot, self.chunks.sm_ref(slot, generation), tensor, urgency)

    def apply(
        self,
        reads: tuple[Read, ...] = (),
        recoveries: tuple[Recover, ...] = (),
        *,
        releases: list[Release] | None = None,
        tensor_releases: tuple[SlotRef, ...] = (),
        cancels: tuple[int, ...] = (),
        deadline_s: float = math.inf,
    ) -> None:
        all_releases = (releases or []) + [Release(Pool.TENSOR, ref) for ref in tensor_releases]
        batch = Operations(list(cancels), all_releases, list(reads), list(recoveries), deadline_s)
        self.session.begin(batch)
        self.session.recover(batch)

    def finish_read(self, read: Read, error: ZipMoeError | None = None) -> None:
        """Plays the store: fills the slots and reports."""
        if error is None:
            self._fill(read)
        self.session.read_reported(Completed(read.operation_id, error, 10, 0.5))

    def read_first_tensor(self, read: Read) -> None:
        """Plays the store: fills the slots but for what is not of the first tensor, and reports that."""
        self._fill(read)
        rest = self.store.manifest.record(read.key).tensors[1:]
        for tensor in rest:
            for chunk in tensor.e_chunks if read.parts & Part.E else ():
                self.damage(read, chunk.offset, chunk.nbytes)
            if read.parts & Part.SM:
                self.damage(read, tensor.sm_chunk.offset, tensor.sm_chunk.nbytes)
        self.session.read_reported(Completed(read.operation_id, None, first_tensor_only=True))

    def damage(self, read: Read, offset: int, nbytes: int = 1) -> None:
        """Inverts bytes of a record that was read, `offset` counted in the record."""
        e_bytes = self.store.manifest.record(read.key).e_bytes
        arena, ref = (self.chunks.e, read.e_slot) if offset < e_bytes else (self.chunks.sm, read.sm_slot)
        assert ref is not None
        begin = offset if offset < e_bytes else offset - e_bytes
        with arena.slot(ref.slot) as slot:
            slot[begin : begin + nbytes] = bytes(byte ^ 0xFF for byte in slot[begin : begin + nbytes])

    def pump(self, count: int = 1) -> None:
        """Plays the event loop: takes what workers report of recoveries until so many have ended."""
        while count:
            count -= self.pump_one()

    def pump_one(self) -> bool:
        """Takes one report of the workers; returns whether it was the end of a recovery."""
        event = self.events.get(timeout=30.0)
        self.session.recover_reported(event)
        return event.ended

    def reports_of(self, operation: Read | Recover) -> list[Completed]:
        return [result for result in self.reported if result.operation_id == operation.operation_id]

    def report_of(self, operation: Read | Recover) -> Completed:
        """The end of an operation."""
        (result,) = [result for result in self.reports_of(operation) if not result.first_tensor_only]
        return result

    def ends(self) -> list[int]:
        """The operations that have ended, in the order of the reports."""
        return [result.operation_id for result in self.reported if not result.first_tensor_only]

    def holds(self, slot: int, key: ExpertKey) -> bool:
        with self.tensors.slot(slot) as view:
            truth = self.store.experts[key]
            return all(view[begin:end] == truth[begin:end] for begin, end in tensor_spans(self.store.manifest, key))

    def close(self) -> None:
        self.codec.gate.set()
        self.workers.stop()
        self.executor.shutdown()
        self.reader.close()
        self.arenas.e.view.close()
        self.arenas.sm.view.close()
        self.chunks.close()
        self.tensors.close()

    def _fill(self, read: Read) -> None:
        e_slot = memoryview(b"") if read.e_slot is None else self.chunks.e.slot(read.e_slot.slot)
        sm_slot = memoryview(b"") if read.sm_slot is None else self.chunks.sm.slot(read.sm_slot.slot)
        with e_slot, sm_slot:
            for request in self.reader.requests(read.key, read.parts):
                self.reader.read_request(request, e_slot, sm_slot)


def _map(arena: Arena) -> MappedArena:
    fd = arena.read_only_fd()
    view = ArenaView.open(fd, arena.slot_bytes, arena.slot_count)
    os.close(fd)
    return MappedArena(ArenaDescription.of(arena, Path("/nowhere")), view)


@contextmanager
def bench(
    store: TinyStore,
    workers: int = 2,
    *,
    verify: bool = False,
    has_tensors: bool = True,
    tensor_form: TensorForm = BF16,
) -> Iterator[DecoderBench]:
    made = DecoderBench(store, workers, verify=verify, has_tensors=has_tensors, tensor_form=tensor_form)
    try:
        yield made
    finally:
        made.close()
