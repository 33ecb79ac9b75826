"""Computes the readings of `zipmoe top` from the metrics of the services at two moments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zipmoe.cli.watching.metrics_endpoints import split_endpoint
from zipmoe.cli.watching.scrape import MetricSample, Samples, read_samples
from zipmoe.errors import Unavailable

STATES = ("full", "packed", "sm_only", "e_only", "absent")
"""Residency states of an expert, from the state that saves most time."""

GUESSES = ("used", "late", "wasted")
"""Outcomes of guesses, which are speculative prefetches of experts that a layer will probably choose."""

POOLS = ("e", "sm", "tensor")
"""Pools of slots."""

_TIMEOUT_S = 3.0
"""Longest wait for the metrics of one service."""


@dataclass(frozen=True)
class Snapshot:
    """The metrics of all services at one moment.

    Attributes:
        taken_s: time of the snapshot, in seconds of the monotonic clock.
        down: error messages of the services that did not answer, by service.
        samples: samples of all services that answered.
    """

    taken_s: float
    down: dict[str, str]
    samples: Samples

    @property
    def uptime_s(self) -> float:
        """Seconds since the start of the service that was started last."""
        begun = [sample.value for sample in self.samples.of("process_start_time_seconds")]
        return time.time() - max(begun) if begun else 0.0


def take_snapshot(endpoints: Mapping[str, str]) -> Snapshot:
    """Asks all services for their metrics. A service that does not answer is listed in `down`."""
    samples: list[MetricSample] = []
    down: dict[str, str] = {}
    for name, endpoint in endpoints.items():
        host, port = split_endpoint(endpoint)
        try:
            samples += read_samples(port, host, _TIMEOUT_S)
        except Unavailable as error:
            down[name] = error.message
    return Snapshot(time.monotonic(), down, Samples(samples))


@dataclass(frozen=True)
class Rates:
    """Rates and shares between two moments. A share of zero events is None.

    Attributes:
        seconds: time between the moments.
        prompt_tokens_per_s: prefilled tokens.
        generated_tokens_per_s: generated tokens.
        accepted_share: share of drafted tokens that were accepted.
        full_hit_share: share of expert activations that found the expert recovered.
        packed_hit_share: share of expert activations that found the chunks of the expert.
        miss_share: share of expert activations that had to read.
        read_bytes_per_s: bytes read from disk.
        read_bytes_per_token: bytes read from disk for each generated token.
        recovered_bytes_per_s: recovered bytes of bf16.
        stall_share: share of the model's time that is spent waiting for experts.
        guesses_per_s: guessed experts by outcome.
    """

    seconds: float
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    accepted_share: float | None
    full_hit_share: float | None
    packed_hit_share: float | None
    miss_share: float | None
    read_bytes_per_s: float
    read_bytes_per_token: float | None
    recovered_bytes_per_s: float
    stall_share: float | None
    guesses_per_s: dict[str, float]

    @classmethod
    def between(cls, before: Samples, after: Samples, seconds: float) -> Rates:
        """Computes the rates. A counter that has shrunk, because its service was restarted, counts as no growth."""

        def grown(name: str, **labels: str) -> float:
            return max(0.0, after.total(name, **labels) - before.total(name, **labels))

        full = grown("zipmoe_expert_hits_total", residency="full")
        packed = grown("zipmoe_expert_hits_total", residency="packed")
        uses = full + packed + grown("zipmoe_expert_misses_total")
        tokens, read = grown("zipmoe_generated_tokens_total"), grown("zipmoe_store_read_bytes_total")
        return cls(
            seconds=seconds,
            prompt_tokens_per_s=_ratio(grown("zipmoe_prompt_tokens_total"), seconds) or 0.0,
            generated_tokens_per_s=_ratio(tokens, seconds) or 0.0,
            accepted_share=_ratio(grown("zipmoe_drafted_tokens_accepted_total"), grown("zipmoe_drafted_tokens_total")),
            full_hit_share=_ratio(full, uses),
            packed_hit_share=_ratio(packed, uses),
            miss_share=_ratio(uses - full - packed, uses),
            read_bytes_per_s=_ratio(read, seconds) or 0.0,
            read_bytes_per_token=_ratio(read, tokens),
            recovered_bytes_per_s=_ratio(grown("zipmoe_decoder_recovered_bytes_total"), seconds) or 0.0,
            stall_share=_ratio(grown("zipmoe_layer_stall_seconds_sum"), grown("zipmoe_model_seconds_total")),
            guesses_per_s={
                outcome: _ratio(grown("zipmoe_prefetches_total", outcome=outcome), seconds) or 0.0
                for outcome in GUESSES
            },
        )


@dataclass(frozen=True)
class Readings:
    """Readings that `zipmoe top` shows at one moment.

    Attributes:
        now: rates since the previous snapshot.
        since_start: rates since the services were started.
        down: error messages of the services that did not answer, by service.
        gauges: current values: requests running and waiting, queues, busy workers, decoders, prefetch depth.
        free_slots: free slots by pool.
        layers: number of experts by residency state, for each MoE layer.
    """

    now: Rates
    since_start: Rates
    down: dict[str, str]
    gauges: dict[str, float]
    free_slots: dict[str, int]
    layers: list[dict[str, int]]

    @classmethod
    def of(cls, before: Snapshot, after: Snapshot) -> Readings:
        """Computes the readings from two successive snapshots."""
        samples = after.samples
        return cls(
            now=Rates.between(before.samples, samples, after.taken_s - before.taken_s),
            since_start=Rates.between(Samples(), samples, after.uptime_s),
            down=after.down,
            gauges={
                "requests_running": samples.total("zipmoe_requests_running"),
                "requests_waiting": samples.total("zipmoe_requests_waiting"),
                "reads_queued": samples.total("zipmoe_store_queue_depth"),
                "recoveries_queued": samples.total("zipmoe_decoder_queue_depth"),
                "workers": samples.total("zipmoe_decoder_workers"),
                "workers_busy": samples.total("zipmoe_decoder_workers_busy"),
                "decoders": samples.total("zipmoe_decoders_connected"),
                "prefetch_depth": samples.total("zipmoe_prefetch_depth"),
            },
            free_slots={pool: int(samples.total("zipmoe_free_slots", pool=pool)) for pool in POOLS},
            layers=_layers(samples),
        )

    def to_json(self) -> dict[str, Any]:
        """Describes the readings as JSON-ready data."""
        return asdict(self)


def _layers(samples: Samples) -> list[dict[str, int]]:
    layers: dict[int, dict[str, int]] = {}
    for sample in samples.of("zipmoe_experts_resident"):
        layer = layers.setdefault(int(sample.labels["layer"]), dict.fromkeys(STATES, 0))
        layer[sample.labels["state"]] = int(sample.value)
    return [layers[index] for index in sorted(layers)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
