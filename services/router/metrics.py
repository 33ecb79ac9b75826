"""What the router tells Prometheus."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zipmoe.residency.state import Residency

ResidentCounts: TypeAlias = collections.Counter[tuple[int, Residency]]
"""Experts by layer and state, but for those that are absent."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RouterMetrics:
    """The router's own series, registered on `registry`; labels are bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = Counter("zipmoe_requests", "Requests that have ended.", ["outcome"], registry=registry)
        self.running = Gauge("zipmoe_requests_running", "Requests that are being generated.", registry=registry)
        self.waiting = Gauge("zipmoe_requests_waiting", "Requests that wait to be admitted.", registry=registry)
        self.time_to_first_token = Histogram(
            "zipmoe_time_to_first_token_seconds",
            "Arrival of a request to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.inter_token = Histogram(
            "zipmoe_inter_token_seconds", "One token to the next.", buckets=_SECONDS, registry=registry
        )
        self.request_duration = Histogram(
            "zipmoe_request_seconds", "Arrival of a request to its end.", buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter("zipmoe_prompt_tokens", "Tokens that were prefilled.", registry=registry)
        self.generated_tokens = Counter("zipmoe_generated_tokens", "Tokens that were generated.", registry=registry)
        self.expert_hits = Counter(
            "zipmoe_expert_hits", "Expert activations served from memory.", ["residency"], registry=registry
        )
        self.expert_misses = Counter(
            "zipmoe_expert_misses", "Expert activations that had to read from disk.", registry=registry
        )
        self.expert_read_bytes = Counter(
            "zipmoe_expert_read_bytes", "Bytes of experts that were read from disk.", registry=registry
        )
        self.layer_stall = Histogram(
            "zipmoe_layer_stall_seconds",
            "Time the model waited for experts, per pass through one layer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.model_seconds = Counter("zipmoe_model_seconds", "Time spent in forward passes.", registry=registry)
        self.fetch_messages = Counter(
            "zipmoe_fetch_messages", "Messages sent to the decoder about experts.", registry=registry
        )
        self.residency_slots = Gauge(
            "zipmoe_residency_slots", "Experts and arena slots by state.", ["state"], registry=registry
        )
        self.decoder_connected = Gauge(
            "zipmoe_decoder_connected", "1 while the session with the decoder is open.", registry=registry
        )
        self.exact = Gauge(
            "zipmoe_router_exact",
            "1 if bf16 linears give a row the same bits in any batch on this machine.",
            registry=registry,
        )
        for residency in ("full", "packed"):
            self.expert_hits.labels(residency)
        for state in ("full", "packed", "loading", "recovering", "free"):
            self.residency_slots.labels(state)
        for outcome in ("stop", "length", "cancelled"):
            self.requests.labels(outcome)

    def show_residency(self, expert_counts: Sequence[int], count: Callable[[], ResidentCounts]) -> None:
        """Shows from now on how many experts of each layer are in which state; counted only when Prometheus asks.

        Args:
            expert_counts: experts of each MoE layer.
            count: counts the experts that are not absent; called from the metrics server's thread.
        """
        self._registry.register(LayerResidency(expert_counts, count))


class LayerResidency(Collector):
    """Counts experts by layer and state; see `RouterMetrics.show_residency`."""

    def __init__(self, expert_counts: Sequence[int], count: Callable[[], ResidentCounts]) -> None:
        self._expert_counts = tuple(expert_counts)
        self._count = count

    def collect(self) -> Iterator[Metric]:
        """Yields the present state."""
        experts = GaugeMetricFamily(
            "zipmoe_experts_resident", "Experts of a MoE layer by residency state.", labels=("layer", "state")
        )
        counts = self._count()
        for layer, expert_count in enumerate(self._expert_counts):
            held = {state: counts[layer, state] for state in Residency if state is not Residency.ABSENT}
            for state, number in ((Residency.ABSENT, expert_count - sum(held.values())), *held.items()):
                experts.add_metric((str(layer), state.value), number)
        yield experts
