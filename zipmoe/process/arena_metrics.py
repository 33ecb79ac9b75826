"""Prometheus series of arenas, for the processes that own arenas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from zipmoe.arena.leased_arena import LeasedArena
from zipmoe.residency.pools import Pool


def arena_metrics(pools: Mapping[Pool, LeasedArena]) -> Iterator[Metric]:
    """Yields the present state of a process's arenas, labelled by pool."""
    slots = GaugeMetricFamily("zipmoe_arena_slots", "Slots of an arena by state.", labels=("pool", "state"))
    nbytes = GaugeMetricFamily("zipmoe_arena_bytes", "Bytes of an arena.", labels=("pool",))
    locked = GaugeMetricFamily("zipmoe_arena_locked", "Whether an arena is locked in memory.", labels=("pool",))
    huge = GaugeMetricFamily(
        "zipmoe_arena_huge_page_bytes", "Bytes of an arena that its owner has in huge pages.", labels=("pool",)
    )
    for pool, leased in pools.items():
        for state, number in leased.slots.counts().items():
            slots.add_metric((pool.value, state), number)
        nbytes.add_metric((pool.value,), leased.arena.nbytes)
        locked.add_metric((pool.value,), int(leased.arena.locked))
        huge.add_metric((pool.value,), leased.arena.huge_page_bytes)
    yield from (slots, nbytes, locked, huge)
