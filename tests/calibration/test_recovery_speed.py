from __future__ import annotations

import pytest

from tests.calibration.measurement_time import TINY
from tests.services.tiny_store import TinyStore
from zipmoe.calibration.recovery_speed import RecoverPoint, measure_recovery, recover_rate
from zipmoe.errors import CorruptData


def test_each_number_of_workers_is_measured_on_the_stores_own_chunks(store: TinyStore) -> None:
    points = measure_recovery(store.path, store.manifest, [1, 2], TINY)
    assert [point.worker_count for point in points] == [1, 2]
    assert all(point.bytes_per_s > 0 for point in points)


def test_damage_is_not_measured_but_reported(store: TinyStore) -> None:
    store.damage(store.keys()[0])
    with pytest.raises(CorruptData):
        measure_recovery(store.path, store.manifest, [1], TINY)


@pytest.mark.parametrize(("workers", "rate"), [(1, 100.0), (2, 90.0), (3, 90.0), (4, 60.0), (8, 30.0)])
def test_workers_beyond_the_measured_ones_share_what_those_gave(workers: int, rate: float) -> None:
    points = (RecoverPoint(1, 100.0), RecoverPoint(2, 90.0), RecoverPoint(4, 60.0))
    assert recover_rate(points, workers) == rate


def test_a_rate_below_the_measured_counts_is_that_of_the_lowest() -> None:
    assert recover_rate((RecoverPoint(2, 90.0),), 1) == 90.0
