"""Shows the brain's counters to Prometheus. Values are read at each scrape, so serving counts nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zipmoe.residency.counters import GuessOutcome, Reason
from zipmoe.residency.pools import Phase, Pool
from zipmoe.residency.state import Residency
from zipmoe.services.router.experts.arena_experts import ArenaExperts
from zipmoe.types import Part

_HITS = (Residency.FULL, Residency.PACKED)
_MISSES = (Residency.ABSENT, Residency.E_ONLY, Residency.SM_ONLY)
_READ_REASONS = (Reason.NEED, Reason.PREFETCH, Reason.FILL)
_PARTS = (Part.E, Part.SM, Part.ALL)


class BrainMetrics(Collector):
    """Collects residency, hits, misses, evictions, reads and the outcomes of predicted prefetches.

    A miss is counted under the residency state of the expert before its read: ABSENT, E_ONLY or SM_ONLY.

    Thread: collected on the thread of the metrics server; a value may be slightly old.
    """

    def __init__(self, expert_counts: Sequence[int], experts: ArenaExperts) -> None:
        """Shows the brain of `experts`; `expert_counts` has the number of experts of each MoE layer."""
        self._expert_counts = tuple(expert_counts)
        self._experts = experts

    def collect(self) -> Iterator[Metric]:
        """Yields the present values."""
        counters = self._experts.brain.counters
        yield self._resident()
        yield _family(
            "zipmoe_expert_hits",
            "Expert activations served from memory.",
            ("phase", "residency"),
            counters.hits,
            [(phase, state) for phase in Phase for state in _HITS],
        )
        yield _family(
            "zipmoe_expert_misses",
            "Expert activations for which something had to be read, by what was held.",
            ("phase", "residency"),
            counters.misses,
            [(phase, state) for phase in Phase for state in _MISSES],
        )
        yield _family(
            "zipmoe_expert_evictions",
            "Slots taken from experts.",
            ("pool", "reason"),
            counters.evictions,
            [(pool, reason) for pool in Pool for reason in Reason],
        )
        yield _family(
            "zipmoe_prefetches",
            "Guessed experts, by what became of them.",
            ("outcome",),
            counters.guesses,
            GuessOutcome,
        )
        reads = CounterMetricFamily("zipmoe_expert_reads", "Completed reads, by what they read.", labels=("parts",))
        for parts in _PARTS:
            reads.add_metric(((parts.name or "").lower(),), counters.reads[parts])
        yield reads
        yield _number("zipmoe_expert_recoveries", "Tensors that were recovered.", counters.recoveries)
        yield _number(
            "zipmoe_expert_promotions", "Recoveries of PACKED experts in the background.", counters.promotions
        )
        yield _family(
            "zipmoe_expert_read_bytes",
            "Bytes of experts from disk, by what for.",
            ("reason",),
            self._experts.account.read_bytes,
            _READ_REASONS,
        )
        free = GaugeMetricFamily("zipmoe_free_slots", "Slots that hold nothing.", labels=("pool",))
        for pool, count in self._experts.brain.free_counts().items():
            free.add_metric((pool.value,), count)
        yield free
        yield GaugeMetricFamily(
            "zipmoe_prefetch_depth", "Layers ahead of which experts are guessed.", self._experts.guess_depth
        )

    def _resident(self) -> Metric:
        family = GaugeMetricFamily(
            "zipmoe_experts_resident", "Experts of a MoE layer by residency state.", labels=("layer", "state")
        )
        counts = self._experts.resident_counts()
        for layer, expert_count in enumerate(self._expert_counts):
            held = {state: counts[layer, state] for state in Residency if state is not Residency.ABSENT}
            for state, number in ((Residency.ABSENT, expert_count - sum(held.values())), *held.items()):
                family.add_metric((str(layer), state.value), number)
        return family


def _family(name: str, help_text: str, labels: Sequence[str], counts: Counter[Any], keys: Iterable[Any]) -> Metric:
    """Makes a counter family with a value for every key, 0 for keys that were never counted."""
    family = CounterMetricFamily(name, help_text, labels=labels)
    for key in keys:
        values = key if isinstance(key, tuple) else (key,)
        family.add_metric([member.value for member in values], counts[key])
    return family


def _number(name: str, help_text: str, value: int) -> Metric:
    return CounterMetricFamily(name, help_text, value=value)
