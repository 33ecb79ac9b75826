"""Interleaved rounds: every contender runs once a round, so that a change of the machine's mood hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from zipmoe.bench.timed_threads import Seconds
from zipmoe.errors import InvalidRequest

_PATIENCE_S = 1.0
_FEWEST_SAMPLES = 3


@dataclass(frozen=True)
class Medians:
    """The medians over all rounds."""

    wall_s: float
    busy_s: float


def interleave(runs: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, Medians]:
    """Runs all contenders in turn, round after round.

    Args:
        runs: contenders by name, each told how long it took. Warmed up by the caller.
        rounds: at least 1. A contender that has taken a second leaves when it has three samples: medians of slow
            things need fewer.

    Returns:
        The medians by name.

    Raises:
        InvalidRequest: no round is asked for.
    """
    if rounds < 1:
        raise InvalidRequest(f"rounds have to be at least 1, not {rounds}")
    samples: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs)
        # Who runs after whom differs from round to round: caches are left as the one before leaves them.
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if len(samples[name]) < _FEWEST_SAMPLES or sum(each.wall_s for each in samples[name]) < _PATIENCE_S:
                samples[name].append(runs[name]())
    return {
        name: Medians(
            statistics.median(each.wall_s for each in taken), statistics.median(each.busy_s for each in taken)
        )
        for name, taken in samples.items()
    }
