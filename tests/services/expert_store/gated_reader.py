"""A reader that a test can hold up."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from tests.services.tiny_store import TinyStore
from zipmoe.store.read.reader import ReadRequest, StoreReader


class GatedReader(StoreReader):
    """A real reader whose requests wait at a gate, all or one at a time, and can be made to fail."""

    def __init__(self, store: TinyStore) -> None:
        super().__init__(store.path, store.manifest)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived: SimpleQueue[ReadRequest] = SimpleQueue()
        self.failure: Exception | None = None
        self._passes = threading.Semaphore(0)

    def close_gate(self) -> None:
        self.gate.clear()

    def open_gate(self) -> None:
        """Lets everything through."""
        self.gate.set()
        self._passes.release()

    def let_through(self) -> None:
        """Lets one of the requests at the closed gate through."""
        self._passes.release()

    def read_request(self, request: ReadRequest, e_slot: memoryview, sm_slot: memoryview) -> None:
        self.arrived.put(request)
        if not self.gate.is_set():
            self._passes.acquire()
            if self.gate.is_set():
                self._passes.release()  # for the next one that waits
        if self.failure is not None:
            raise self.failure
        super().read_request(request, e_slot, sm_slot)
