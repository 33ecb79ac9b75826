from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.measurement_time import TINY
from zipmoe.calibration.disk import DiskSpeed, ReadPoint, measure_disk
from zipmoe.errors import InvalidRequest

KIB = 1024


def make_file(path: Path, nbytes: int) -> Path:
    path.write_bytes(bytes(nbytes))
    return path


def test_every_size_is_measured_at_every_depth(tmp_path: Path) -> None:
    speed = measure_disk([make_file(tmp_path / "a", 256 * KIB), make_file(tmp_path / "b", 4 * KIB)], TINY)
    kinds = [(point.request_bytes, point.queue_depth) for point in speed.points]
    assert kinds == [(4 * KIB, 1), (4 * KIB, 2), (64 * KIB, 1), (64 * KIB, 2)]
    assert all(point.latency_s > 0 and point.bytes_per_s > 0 for point in speed.points)


def test_requests_larger_than_the_files_are_left_out_or_cut(tmp_path: Path) -> None:
    sizes = {point.request_bytes for point in measure_disk([make_file(tmp_path / "a", 8 * KIB)], TINY).points}
    assert sizes == {4 * KIB}


def test_files_without_a_single_page_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="4096"):
        measure_disk([make_file(tmp_path / "a", 0)], TINY)


def test_the_nearest_measurement_counts() -> None:
    points = tuple(
        ReadPoint(size * KIB, depth, size * depth * 1e-6, float(size * depth)) for size in (4, 1024) for depth in (1, 4)
    )
    speed = DiskSpeed(True, points)
    assert speed.latency_s == pytest.approx(4e-6)
    assert speed.bytes_per_s(2048 * KIB, 4) == 4096.0
    assert speed.bytes_per_s(2048 * KIB, 64) == 4096.0
    assert speed.bytes_per_s(8 * KIB, 1) == 4.0
