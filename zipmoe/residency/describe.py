"""Describes the whole state of a brain in one line, for `repr` and for the tests that compare states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zipmoe.residency.fetch_queue import FetchQueue
from zipmoe.residency.holding import Holding
from zipmoe.residency.slot_pool import SlotPool


def describe(queue: FetchQueue, holdings: Sequence[Holding], usable: Iterable[Holding]) -> str:
    """Describes a state as `a: e[0.1* 0.2?] sm[0.1*] tensor[0.3~] waiting[0.4] usable[0.1]`.

    An expert is `layer.expert`. Marks follow the expert: `~` the slot is being written, `*` the slot is in use or
    awaited, `?` the expert is transient, `-` the expert is spare.
    """
    words = []
    for name, pools in queue.decoders.items():
        words.append(f"{name}:")
        for pool in pools:
            if pool.slot_count:
                holders = [_holder(held, pool) for held in holdings if held.home is pools and held.slot(pool.kind)]
                words.append(f"{pool.kind.value}[{' '.join(holders)}]")
    words.append(f"waiting[{_names(queue.waiting)}] usable[{_names(usable)}]")
    return " ".join(words)


def _holder(held: Holding, pool: SlotPool) -> str:
    marks = ""
    if not held.has(pool.kind):
        marks += "~"
    elif not pool.evictable[held.index]:
        marks += "*"
    if held.index in pool.transient:
        marks += "?"
    elif held.index in pool.spare:
        marks += "-"
    return _name(held) + marks


def _name(held: Holding) -> str:
    return f"{held.key.layer}.{held.key.expert}"


def _names(experts: Iterable[Holding]) -> str:
    return " ".join(map(_name, experts))
