"""Prometheus metrics of the decoder."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.errors import DeadlineExceeded
from zipmoe.process.arena_metrics import arena_metrics
from zipmoe.process.session_metrics import SessionCount, session_metric
from zipmoe.process.task_pool import TaskPool
from zipmoe.residency.pools import Pool
from zipmoe.services.decoder.job import RecoverJob
from zipmoe.services.decoder.store_link import StoreLink

_RECOVER_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0)


class DecoderMetrics:
    """Counters and histograms of recoveries.

    Thread: safe from any.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._recoveries = Counter(
            "zipmoe_decoder_recoveries", "Recoveries of experts that have ended.", ("outcome",), registry=registry
        )
        self._recovered_bytes = Counter(
            "zipmoe_decoder_recovered_bytes", "Bytes of bf16 weights that were recovered.", registry=registry
        )
        self._recover_seconds = Histogram(
            "zipmoe_decoder_recover_seconds",
            "Seconds from the first E-chunk of an expert taken by a worker until the last one was recovered.",
            buckets=_RECOVER_SECONDS,
            registry=registry,
        )
        for outcome in ("ok", "late", "error"):
            self._recoveries.labels(outcome)

    def recover_ended(self, job: RecoverJob) -> None:
        """Counts one recovery."""
        outcome = "late" if isinstance(job.error, DeadlineExceeded) else "error" if job.error else "ok"
        self._recoveries.labels(outcome).inc()
        if job.error is None:
            self._recovered_bytes.inc(job.recovered_bytes)
            self._recover_seconds.observe(job.work_s)


class DecoderState(Collector):
    """Metrics that are read from the running parts whenever Prometheus asks."""

    def __init__(
        self, tensors: LeasedArena | None, workers: TaskPool[RecoverJob], link: StoreLink, sessions: SessionCount
    ) -> None:
        self._pools = {} if tensors is None else {Pool.TENSOR: tensors}
        self._workers = workers
        self._link = link
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        """Yields the current values."""
        workers = self._workers
        yield GaugeMetricFamily("zipmoe_decoder_workers", "Threads that recover tensors.", value=workers.thread_count)
        yield GaugeMetricFamily(
            "zipmoe_decoder_workers_busy", "Threads that are recovering right now.", value=workers.busy_count
        )
        yield GaugeMetricFamily(
            "zipmoe_decoder_queue_depth", "Recoveries that are queued or running.", value=workers.open_count
        )
        yield GaugeMetricFamily(
            "zipmoe_decoder_store_connected", "Whether the expert store is attached.", value=int(self._link.attached)
        )
        yield session_metric(self._sessions)
        busy = CounterMetricFamily(
            "zipmoe_decoder_worker_busy_seconds",
            "Seconds that workers have spent recovering, all workers together.",
        )
        busy.add_metric((), workers.busy_s)
        yield busy
        yield from arena_metrics(self._pools)
