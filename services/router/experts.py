"""Routed experts from shared memory: drives the brain, and the decoder by what the brain says."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from services.decoder.client import FetchEvent, FetchSession, FetchSessionLost
from services.router.metrics import RouterMetrics
from services.router.tensors import ArenaTensors
from zipmoe.errors import DeadlineExceeded, Unavailable
from zipmoe.residency.base import Operations, ResidencyPolicy
from zipmoe.residency.state import Residency


@dataclass(slots=True)
class ExpertUsage:
    """Running totals of what experts cost; a request's share is a difference of two of these."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    stall_s: float = 0.0

    def since(self, before: ExpertUsage) -> ExpertUsage:
        """What was added since `before` was copied."""
        return ExpertUsage(
            self.hits - before.hits,
            self.misses - before.misses,
            self.bytes_read - before.bytes_read,
            self.stall_s - before.stall_s,
        )


class ArenaExperts:
    """The model's expert provider over one decoder.

    Between `attach` and `detach` it owns a session, the mapped tensor arena and the brain that decides over both.
    The session's reader thread only fills `completions`; everything else happens on the model thread.

    Thread: the model thread, but for `FetchSessionLost` events, which `completions` carries over.
    """

    def __init__(self, metrics: RouterMetrics, *, fetch_timeout_s: float) -> None:
        self.usage = ExpertUsage()
        self._metrics = metrics
        self._fetch_timeout_s = fetch_timeout_s
        self._session: FetchSession | None = None
        self._policy: ResidencyPolicy | None = None
        self._tensors: ArenaTensors | None = None
        self._completions: queue.SimpleQueue[FetchEvent] = queue.SimpleQueue()
        self._lost: Exception | None = None

    def attach(
        self,
        session: FetchSession,
        completions: queue.SimpleQueue[FetchEvent],
        policy: ResidencyPolicy,
        tensors: ArenaTensors,
    ) -> None:
        """Starts to serve experts through an open session."""
        self._session, self._completions, self._policy, self._tensors = session, completions, policy, tensors
        self._lost = None

    def detach(self) -> None:
        """Stops serving: closes the session and gives the mapping up. Safe to repeat."""
        session, self._session = self._session, None
        tensors, self._tensors = self._tensors, None
        self._policy = None
        if session is not None:
            session.close()
        if tensors is not None:
            tensors.close()

    @property
    def attached(self) -> bool:
        """Whether a session is open, as far as is known."""
        return self._session is not None and self._lost is None

    def experts(self, layer: int, expert_ids: Sequence[int]) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
        """Yields the experts of one layer pass as they become usable, resident ones first.

        Args:
            layer: ordinal of the MoE layer.
            expert_ids: distinct expert ids.

        Yields:
            (expert id, its bf16 matrices as views of the tensor arena), valid until the next item is asked for.

        Raises:
            CorruptData: an expert's chunks are damaged on disk.
            Unavailable: the session with the decoder is lost.
            DeadlineExceeded: nothing completed within the fetch timeout.
        """
        policy, tensors = self._policy, self._tensors
        if policy is None or tensors is None or self._lost is not None:
            raise Unavailable("the decoder is not connected")
        before = (policy.counters.full_hits, policy.counters.packed_hits, policy.counters.misses)
        self._send(policy.need(layer, expert_ids))
        self._count(policy, before)
        waited_s, left, current = 0.0, len(expert_ids), None
        try:
            while left:
                while not self._completions.empty():
                    self._absorb(policy, self._completions.get())
                usable = policy.next_usable()
                if usable is None:
                    started = time.perf_counter()
                    self._absorb(policy, self._next_completion(layer))
                    waited_s += time.perf_counter() - started
                    continue
                current = usable.key
                yield usable.key.expert, tensors.expert(usable.key.layer, usable.tensor_slot.slot)
                current = None
                left -= 1
                self._send(policy.done(usable.key))
        finally:
            self.usage.stall_s += waited_s
            self._metrics.layer_stall.observe(waited_s)
            if left and self._lost is None:
                if current is not None:
                    self._send(policy.done(current))
                self._send(policy.abandon())

    def slot_counts(self) -> dict[str, int]:
        """Slots by state for the metrics; empty while detached."""
        return {} if self._policy is None else self._policy.slot_counts()

    def resident_counts(self) -> Counter[tuple[int, Residency]]:
        """Experts by layer and state, from any thread; none while detached, when nothing is resident."""
        policy = self._policy
        return Counter() if policy is None else policy.resident_counts()

    def _count(self, policy: ResidencyPolicy, before: tuple[int, int, int]) -> None:
        full = policy.counters.full_hits - before[0]
        packed = policy.counters.packed_hits - before[1]
        misses = policy.counters.misses - before[2]
        self.usage.hits += full + packed
        self.usage.misses += misses
        self._metrics.expert_hits.labels("full").inc(full)
        self._metrics.expert_hits.labels("packed").inc(packed)
        self._metrics.expert_misses.inc(misses)

    def _send(self, operations: Operations) -> None:
        if operations and self._session is not None:
            self._metrics.fetch_messages.inc()
            self._session.send(
                operations.chunk_releases, operations.tensor_releases, operations.reads, operations.recoveries
            )

    def _next_completion(self, layer: int) -> FetchEvent:
        try:
            return self._completions.get(timeout=self._fetch_timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(
                f"no expert of MoE layer {layer} arrived within {self._fetch_timeout_s:.0f} s"
            ) from None

    def _absorb(self, policy: ResidencyPolicy, event: FetchEvent) -> None:
        if isinstance(event, FetchSessionLost):
            self._lost = event.error
            raise event.error
        self.usage.bytes_read += event.bytes_read
        self._metrics.expert_read_bytes.inc(event.bytes_read)
        self._send(policy.completed(event.operation_id, event.error))
