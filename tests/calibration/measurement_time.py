"""Measuring that is over at once: what it gives says nothing, but it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zipmoe.calibration.measurement_time import KIB, MeasurementTime

TINY = MeasurementTime(
    name="tiny",
    request_bytes=(4 * KIB, 64 * KIB),
    queue_depths=(1, 2),
    point_s=0.002,
    rounds=1,
    model_steps=2,
    scratch_bytes=1 << 20,
)


@contextmanager
def measuring_at_once(cache: Path) -> Iterator[None]:
    """During the block figures are measured with TINY effort and kept in a cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIPMOE_CACHE_DIR", str(cache))
        patch.setattr("zipmoe.calibration.measure.QUICK", TINY)
        patch.setattr("zipmoe.calibration.measurement_time.QUICK", TINY)
        patch.setattr("zipmoe.calibration.measurement_time.THOROUGH", TINY)
        yield


@pytest.fixture
def own_cache(tmp_path: Path) -> Iterator[None]:
    """A cache folder of the test's own, and figures that are measured at once."""
    with measuring_at_once(tmp_path / "cache"):
        yield


@pytest.fixture(scope="class")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As `own_cache`, for a class of tests that only read figures: who comes first has them measured."""
    with measuring_at_once(tmp_path_factory.mktemp("figures")):
        yield
