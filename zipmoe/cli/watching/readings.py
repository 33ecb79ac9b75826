"""What `zipmoe top` shows, computed from the services' metrics at two moments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zipmoe.cli.watching.metrics_endpoints import split_endpoint
from zipmoe.cli.watching.scrape import MetricSample, Samples, read_samples
from zipmoe.errors import Unavailable

STATES = ("full", "packed", "sm_only", "e_only", "absent")
"""The residency states of an expert, from the one that saves most."""

GUESSES = ("used", "late", "wasted")
"""What becomes of experts that were fetched because a layer would probably need them."""

POOLS = ("e", "sm", "tensor")
"""The pools of slots."""


@dataclass(frozen=True)
class Snapshot:
    """The metrics of all services at one moment.

    Attributes:
        taken_s: when, in seconds of the monotonic clock.
        down: endpoints that did not answer, and why, by service.
        samples: of all that did.
    """

    taken_s: float
    down: dict[str, str]
    samples: Samples

    @property
    def uptime_s(self) -> float:
        """Seconds since the last of the services was started."""
        begun = [sample.value for sample in self.samples.of("process_start_time_seconds")]
        return time.time() - max(begun) if begun else 0.0


def take_snapshot(endpoints: Mapping[str, str], timeout_s: float = 3.0) -> Snapshot:
    """Asks all services for their metrics; who does not answer is noted, not raised."""
    samples: list[MetricSample] = []
    down: dict[str, str] = {}
    for name, endpoint in endpoints.items():
        host, port = split_endpoint(endpoint)
        try:
            samples += read_samples(port, host, timeout_s)
        except Unavailable as error:
            down[name] = error.message
    return Snapshot(time.monotonic(), down, Samples(samples))


@dataclass(frozen=True)
class Rates:
    """What happened between two moments; a share of nothing is None.

    Attributes:
        seconds: between the moments.
        prompt_tokens_per_s: prefilled.
        generated_tokens_per_s: generated.
        full_hit_share: expert activations that found the expert recovered.
        packed_hit_share: those that found its chunks.
        miss_share: those that had to read.
        read_bytes_per_s: from disk.
        read_bytes_per_token: from disk, for each token that was generated.
        recovered_bytes_per_s: bf16.
        stall_share: the part of the model's time that it waited for experts.
        guesses_per_s: guessed experts by what became of them.
    """

    seconds: float
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
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
        """Computes the rates; a service that was started anew in between counts from 0 again, and shows nothing."""

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
    """Everything that is shown at one moment.

    Attributes:
        now: since the snapshot before.
        since_start: since the services were started.
        down: services that did not answer, and why.
        gauges: what is as it is: requests running and waiting, queues, busy workers, decoders, how deep is guessed.
        free_slots: slots that hold nothing, by pool.
        layers: experts of each MoE layer by residency state.
    """

    now: Rates
    since_start: Rates
    down: dict[str, str]
    gauges: dict[str, float]
    free_slots: dict[str, int]
    layers: list[dict[str, int]]

    @classmethod
    def of(cls, before: Snapshot, after: Snapshot) -> Readings:
        """Computes what two snapshots, one after the other, show."""
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
        """Describes the readings for programs."""
        return asdict(self)


def _layers(samples: Samples) -> list[dict[str, int]]:
    layers: dict[int, dict[str, int]] = {}
    for sample in samples.of("zipmoe_experts_resident"):
        layer = layers.setdefault(int(sample.labels["layer"]), dict.fromkeys(STATES, 0))
        layer[sample.labels["state"]] = int(sample.value)
    return [layers[index] for index in sorted(layers)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
