from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zipmoe.calibration.calibration import Calibration, StoreSpeed
from zipmoe.calibration.calibration_file import cache_folder, calibration_path, load_calibration, save_calibration
from zipmoe.calibration.disk import DiskSpeed, ReadPoint
from zipmoe.calibration.identity import MachineIdentity
from zipmoe.calibration.messages import MessageSpeed
from zipmoe.calibration.model_speed import ModelSpeed
from zipmoe.calibration.recovery_speed import RecoverPoint
from zipmoe.errors import NotFound
from zipmoe.planning.costs import RowCost

IDENTITY = MachineIdentity("cpu", 2, "6.1", "2.13", "avx2 00", "ext4 on /dev/x")
MODEL = ModelSpeed(RowCost(1e-3, 1e-4), RowCost(2e-3, 1e-4), RowCost(5e-3, 1e-3))
CALIBRATION = Calibration(
    IDENTITY,
    "quick",
    0.1,
    DiskSpeed(True, (ReadPoint(4096, 1, 1e-4, 4e7), ReadPoint(1 << 20, 4, 2e-3, 2e9))),
    MessageSpeed(3e-4, 5e-5),
    {"d1": StoreSpeed("zstd", 1000, 0.0, (RecoverPoint(1, 2e9), RecoverPoint(2, 1.5e9)), {"cpu": MODEL})},
)


def test_what_is_saved_is_loaded_again() -> None:
    assert load_calibration(IDENTITY) is None
    path = save_calibration(CALIBRATION)
    assert path == calibration_path(IDENTITY)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert load_calibration(IDENTITY) == CALIBRATION


def test_another_machine_has_no_figures() -> None:
    save_calibration(CALIBRATION)
    assert load_calibration(replace(IDENTITY, torch="2.14")) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"identity": {"cpu": 1}}', b"\xff"])
def test_a_damaged_file_counts_as_missing(content: bytes) -> None:
    save_calibration(CALIBRATION).write_bytes(content)
    assert load_calibration(IDENTITY) is None


@pytest.mark.parametrize(
    "change", [("0.001", "-0.001"), ('"messages"', '"letters"'), ('"points"', '"points": [], "other"')]
)
def test_figures_that_no_measurement_gives_count_as_missing(change: tuple[str, str]) -> None:
    path = save_calibration(CALIBRATION)
    path.write_text(path.read_text().replace(*change))
    assert load_calibration(IDENTITY) is None


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder().name == "cache"
    monkeypatch.delenv("ZIPMOE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/zipmoe")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "zipmoe"


def test_costs_are_those_of_the_setting() -> None:
    costs = CALIBRATION.costs("d1", device="cpu", worker_count=2, io_threads=4, request_bytes=2 << 20)
    assert (costs.read_latency_s, costs.read_overhead_s, costs.read_bytes_per_s) == (pytest.approx(7e-4), 1e-4, 2e9)
    assert (costs.recover_bytes_per_s, costs.worker_count) == (1.5e9, 2)
    assert (costs.full_ffn, costs.packed_ffn, costs.dense) == (MODEL.full_ffn, MODEL.packed_ffn, MODEL.dense)
    assert costs.shares_cores


def test_costs_of_what_was_not_measured_are_refused() -> None:
    for digest, device in (("d2", "cpu"), ("d1", "cuda")):
        with pytest.raises(NotFound, match="has not been measured"):
            CALIBRATION.costs(digest, device=device, worker_count=1, io_threads=1, request_bytes=4096)
