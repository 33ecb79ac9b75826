"""How long to measure: a few seconds where figures are missing, longer when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class MeasurementTime:
    """How much is measured.

    Attributes:
        name: `quick` or `thorough`.
        request_bytes: sizes of requests to the disk.
        queue_depths: requests at the disk at the same time.
        point_s: seconds of each measurement.
        rounds: how often every measurement is repeated, interleaved with the others.
        model_steps: decode steps of the whole model.
        scratch_bytes: size of the file that is read where there is no store.
    """

    name: str
    request_bytes: tuple[int, ...]
    queue_depths: tuple[int, ...]
    point_s: float
    rounds: int
    model_steps: int
    scratch_bytes: int


QUICK = MeasurementTime(
    name="quick",
    request_bytes=(4 * KIB, 2 * MIB),
    queue_depths=(1, 4),
    point_s=0.08,
    rounds=3,
    model_steps=5,
    scratch_bytes=64 * MIB,
)

THOROUGH = MeasurementTime(
    name="thorough",
    request_bytes=(4 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 2 * MIB, 4 * MIB),
    queue_depths=(1, 2, 4, 8),
    point_s=0.15,
    rounds=3,
    model_steps=15,
    scratch_bytes=256 * MIB,
)


def undisturbed(seconds: Sequence[float]) -> float:
    """The lower quartile of repeated measurements of computing.

    Other jobs can only slow it down, and when serving it is meant to have the machine to itself. The disk's own swings
    are there whether or not anybody else is: of its measurements the median counts.
    """
    return sorted(seconds)[len(seconds) // 4]
