"""Measuring that is over at once: what it gives says nothing, but it is given."""

from __future__ import annotations

import pytest

from zipmoe.calibration.effort import KIB, Effort

TINY = Effort(
    name="tiny",
    request_bytes=(4 * KIB, 64 * KIB),
    queue_depths=(1, 2),
    point_s=0.002,
    rounds=1,
    model_steps=2,
    scratch_bytes=1 << 20,
)


@pytest.fixture
def own_cache(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own, and figures that are measured at once."""
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", f"{tmp_path}/cache")
    monkeypatch.setattr("zipmoe.calibration.measure.QUICK", TINY)
    monkeypatch.setattr("zipmoe.calibration.effort.QUICK", TINY)
    monkeypatch.setattr("zipmoe.calibration.effort.THOROUGH", TINY)
