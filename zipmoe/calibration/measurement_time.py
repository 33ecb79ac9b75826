"""Duration of measurements: a few seconds for missing measurements, longer on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class MeasurementTime:
    """Extent of a calibration: sizes, durations and repetitions of measurements.

    Attributes:
        name: `quick` or `thorough`.
        request_bytes: sizes of requests to the disk.
        queue_depths: requests at the disk at the same time.
        point_s: seconds of each measurement.
        rounds: repetitions of every measurement, interleaved with the other measurements.
        model_steps: decode steps of the whole model after each pair of prompts.
        scratch_bytes: bytes of the scratch file that is read where there is no store or a smaller store.
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
    """Returns the lower quartile of repeated measurements of computing.

    Other jobs can only slow computing down, and serving is meant to have the machine to itself. The speed of a disk
    varies even without other jobs, so measurements of the disk use the median instead.
    """
    return sorted(seconds)[len(seconds) // 4]
