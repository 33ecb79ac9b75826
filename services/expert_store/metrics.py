"""What the expert store tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.expert_store.channel import ReadChannel
from services.expert_store.operations import ReadResult
from zipmoe.arena.arena import Arena
from zipmoe.arena.lease import SlotTable
from zipmoe.errors import CorruptData
from zipmoe.store.reader import StoreReader
from zipmoe.types import Part

_READ_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0)
_PART_LABEL = {Part.E: "e", Part.SM: "sm", Part.ALL: "all"}


class StoreMetrics:
    """Counters and histograms of reads.

    Thread: safe from any.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reads = Counter(
            "zipmoe_store_reads", "Reads of experts that have ended.", ("part", "outcome"), registry=registry
        )
        self._read_bytes = Counter(
            "zipmoe_store_read_bytes", "Bytes of experts read from disk.", ("part",), registry=registry
        )
        self._read_seconds = Histogram(
            "zipmoe_store_read_seconds",
            "Seconds from the first request to the disk until the last checksum of an expert was verified.",
            buckets=_READ_SECONDS,
            registry=registry,
        )
        self._checksum_failures = Counter(
            "zipmoe_store_checksum_failures",
            "Reads that failed by a wrong checksum, a short read or an I/O error.",
            registry=registry,
        )
        for label in _PART_LABEL.values():
            self._read_bytes.labels(label)
            for outcome in ("ok", "error"):
                self._reads.labels(label, outcome)

    def read_ended(self, part: Part, result: ReadResult) -> None:
        """Counts one read."""
        label = _PART_LABEL[part]
        self._reads.labels(label, "ok" if result.error is None else "error").inc()
        self._read_bytes.labels(label).inc(result.bytes_read)
        if result.error is None:
            self._read_seconds.observe(result.read_s)
        if isinstance(result.error, CorruptData):
            self._checksum_failures.inc()


class Sessions(Protocol):
    """Who knows how many sessions are open."""

    @property
    def session_count(self) -> int:
        """Sessions that are open."""


class StoreState(Collector):
    """What is read off the running parts whenever Prometheus asks."""

    def __init__(
        self, arena: Arena, slots: SlotTable, reader: StoreReader, channel: ReadChannel, sessions: Sessions
    ) -> None:
        self._arena = arena
        self._slots = slots
        self._reader = reader
        self._channel = channel
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Yields the present state."""
        buffered = CounterMetricFamily(
            "zipmoe_store_buffered_reads",
            "Requests to the disk that went through the page cache, O_DIRECT being refused.",
        )
        buffered.add_metric((), self._reader.buffered_reads)
        yield buffered
        direct = "Whether all files of experts are read with O_DIRECT."
        yield GaugeMetricFamily("zipmoe_store_direct_io", direct, value=int(self._reader.direct))
        depth = "Reads of experts that have been accepted and have not ended."
        yield GaugeMetricFamily("zipmoe_store_queue_depth", depth, value=self._channel.open_count)
        yield GaugeMetricFamily("zipmoe_sessions", "Sessions that are open.", value=self._sessions.session_count)
        slots = GaugeMetricFamily("zipmoe_arena_slots", "Slots of an arena by state.", labels=("arena", "state"))
        for state, number in self._slots.counts().items():
            slots.add_metric(("chunk", state), number)
        yield slots
        nbytes = GaugeMetricFamily("zipmoe_arena_bytes", "Bytes of an arena.", labels=("arena",))
        nbytes.add_metric(("chunk",), self._arena.nbytes)
        yield nbytes
        locked = GaugeMetricFamily("zipmoe_arena_locked", "Whether an arena is locked in memory.", labels=("arena",))
        locked.add_metric(("chunk",), int(self._arena.locked))
        yield locked
