from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.calibration.test_calibration_file import CALIBRATION
from tests.services.tiny_store import make_store
from zipmoe.calibration.calibration_file import save_calibration
from zipmoe.calibration.disk import DiskSpeed, ReadPoint
from zipmoe.calibration.identity import machine_identity
from zipmoe.doctor.finding import Verdict
from zipmoe.doctor.storage import check_bandwidth, check_direct_reads, check_storage
from zipmoe.errors import NotFound


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIPMOE_CACHE_DIR", str(tmp_path / "cache"))


def refuse(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes direct reads fail."""
    original = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(code, os.strerror(code), path)
        return original(path, flags, *rest, **more)

    monkeypatch.setattr("zipmoe.doctor.storage.os.open", refusing)


def test_nothing_is_left_behind_where_there_is_no_store(tmp_path: Path) -> None:
    finding = check_direct_reads(tmp_path)
    assert finding.verdict in (Verdict.OK, Verdict.WARN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "verdict"), [(errno.EINVAL, Verdict.WARN), (errno.EACCES, Verdict.WARN), (errno.EIO, Verdict.FAIL)]
)
def test_a_refusal_is_told_apart_from_a_broken_disk(
    code: int, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    refuse(code, monkeypatch)
    finding = check_direct_reads(store.path)
    assert finding.verdict is verdict and finding.advice


def test_the_bandwidth_is_the_measured_one(tmp_path: Path) -> None:
    assert check_bandwidth(tmp_path).found == "not measured"
    identity = machine_identity(tmp_path)
    for rate, verdict in ((2e9, Verdict.OK), (0.2e9, Verdict.WARN)):
        disk = DiskSpeed(True, (ReadPoint(2 << 20, 4, 1e-3, rate),))
        save_calibration(replace(CALIBRATION, identity=identity, disk=disk))
        finding = check_bandwidth(tmp_path)
        assert finding.verdict is verdict
        assert finding.found == f"{rate / 1e9:.2f} GB/s with 4 x 2048 KiB at once, latency 1000 us"


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        list(check_storage(tmp_path / "none"))
