"""Prometheus metrics of the expert store."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zipmoe.errors import Cancelled, CorruptData, DeadlineExceeded, ZipMoeError
from zipmoe.process.arena_metrics import arena_metrics
from zipmoe.process.session_metrics import SessionCount, session_metric
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Completed
from zipmoe.services.expert_store.job import ReadJob
from zipmoe.services.expert_store.measured_disk import MeasuredDisk
from zipmoe.services.expert_store.session import ReadSessions
from zipmoe.store.read.reader import StoreReader
from zipmoe.types import Part

_READ_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0)
_PART_LABEL = {Part.E: "e", Part.SM: "sm", Part.ALL: "all"}
_OUTCOMES = ("ok", "cancelled", "late", "error")


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
        for part, label in _PART_LABEL.items():
            if part is not Part.ALL:
                self._read_bytes.labels(label)
            for outcome in _OUTCOMES:
                self._reads.labels(label, outcome)

    def read_ended(self, job: ReadJob, result: Completed) -> None:
        """Counts one read."""
        self._reads.labels(_PART_LABEL[job.read.parts], _outcome(result.error)).inc()
        for part, nbytes in job.bytes_read.items():
            self._read_bytes.labels(_PART_LABEL[part]).inc(nbytes)
        if result.error is None:
            self._read_seconds.observe(result.work_s)
        if isinstance(result.error, CorruptData):
            self._checksum_failures.inc()


def _outcome(error: ZipMoeError | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, Cancelled):
        return "cancelled"
    return "late" if isinstance(error, DeadlineExceeded) else "error"


class StoreState(Collector):
    """Metrics that are read from the running parts whenever Prometheus asks."""

    def __init__(
        self,
        owner: ReadSessions,
        reader: StoreReader,
        io: TaskPool[ReadJob],
        disk: MeasuredDisk,
        sessions: SessionCount,
    ) -> None:
        self._owner = owner
        self._reader = reader
        self._io = io
        self._disk = disk
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Yields the current values."""
        buffered = CounterMetricFamily(
            "zipmoe_store_buffered_reads",
            "Requests to the disk that went through the page cache, O_DIRECT being refused.",
        )
        buffered.add_metric((), self._reader.buffered_reads)
        yield buffered
        direct = "Whether all files of experts are read with O_DIRECT."
        yield GaugeMetricFamily("zipmoe_store_direct_io", direct, value=int(self._reader.direct))
        depth = "Reads of experts that have been accepted and have not ended."
        yield GaugeMetricFamily("zipmoe_store_queue_depth", depth, value=self._io.open_count)
        yield session_metric(self._sessions)
        busy = CounterMetricFamily(
            "zipmoe_store_channel_busy_seconds", "Seconds during which at least one request was at the disk."
        )
        busy.add_metric((), self._disk.busy.seconds)
        yield busy
        yield from arena_metrics(self._owner.pools)
