"""A reader that a test can hold up."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from tests.services.tiny_store import TinyStore
from zipmoe.store.reader import ReadRequest, StoreReader


class GatedReader(StoreReader):
    """A real reader whose requests wait at a gate, and can be made to fail."""

    def __init__(self, store: TinyStore) -> None:
        super().__init__(store.path, store.manifest)
        self.gate = threading.Event()
        self.gate.set()
        self.arrived: SimpleQueue[ReadRequest] = SimpleQueue()
        self.failure: Exception | None = None

    def close_gate(self) -> None:
        self.gate.clear()

    def read_request(self, request: ReadRequest, slot: memoryview) -> None:
        self.arrived.put(request)
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        super().read_request(request, slot)
