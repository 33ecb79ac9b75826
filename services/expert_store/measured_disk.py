"""Reads requests of jobs from disk, and measures how long the disk is busy."""

from __future__ import annotations

from zipmoe.services.expert_store.busy_clock import BusyClock
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.store.read.reader import ReadRequest, StoreReader


class MeasuredDisk:
    """The work of the store's I/O threads, each with one request at the disk: their number is the queue depth.

    `busy` measures the time during which at least one request is at the disk.

    Thread: safe from any.
    """

    def __init__(self, reader: StoreReader) -> None:
        self.busy = BusyClock()
        self._reader = reader

    def read(self, job: ReadJob, request: ReadRequest) -> None:
        """Reads one request into the slots of its job; raises as `StoreReader.read_request` does."""
        with self.busy:
            self._reader.read_request(request, job.e_slot, job.sm_slot)
