"""Runs contenders in interleaved rounds, so that a change of the load on the machine affects all alike."""

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
    """Median times over all rounds."""

    wall_s: float
    busy_s: float


def interleave(runs: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, Medians]:
    """Runs all contenders in turn, round after round.

    Args:
        runs: functions of the contenders by name, warmed up by the caller. Each function returns its times.
        rounds: number of rounds, at least 1. A contender that has run for a second stops after three samples, because
            slow runs need fewer samples.

    Returns:
        The medians by name.

    Raises:
        InvalidRequest: `rounds` is less than 1.
    """
    if rounds < 1:
        raise InvalidRequest(f"rounds have to be at least 1, not {rounds}")
    samples: dict[str, list[Seconds]] = {name: [] for name in runs}
    for turn in range(rounds):
        names = list(runs)
        # The order rotates from round to round, because each run finds the caches as its predecessor left them.
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
