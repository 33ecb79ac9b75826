from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.calibration.measurement_time import TINY
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.calibration import measure
from zipmoe.calibration.calibration_file import load_calibration
from zipmoe.calibration.identity import machine_identity
from zipmoe.calibration.measure import calibrate, ensure_calibration, worker_counts
from zipmoe.calibration.synthetic_store import synthetic_stores
from zipmoe.codec.registry import codec_names
from zipmoe.store.format.layout import TensorSpec
from zipmoe.store.format.manifest import read_manifest


def test_everything_about_a_store_is_measured_and_kept(store: TinyStore) -> None:
    noted: list[str] = []
    found = calibrate(store.path, "cpu", TINY, noted.append)
    assert noted == ["disk", "messages", "recovery with zstd", "computing on cpu"]
    speed = found.stores[store.manifest.digest]
    assert speed.models["cpu"].full_ffn.first_s > 0
    assert speed.models["cpu"].dense is None
    assert "config.json" in speed.models["cpu"].why_no_dense
    assert load_calibration(machine_identity(store.path)) == found


def test_only_what_is_missing_is_measured(store: TinyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.OtherWork, "ratio", lambda _: 0.0)
    other = make_store(tmp_path / "other", shapes=((64, 40), (40, 32)), seed=1)
    for each, expected in ((store, 4), (store, 0), (other, 2)):
        noted: list[str] = []
        found = ensure_calibration(each.path, each.manifest, "cpu", noted.append)
        assert len(noted) == expected
        assert each.manifest.digest in found.stores
    assert len(found.stores) == 2


def test_what_was_measured_on_a_busy_machine_is_measured_again(
    store: TinyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ratio, expected in ((0.9, 4), (0.0, 4), (0.0, 0)):
        monkeypatch.setattr(measure.OtherWork, "ratio", lambda _, ratio=ratio: ratio)
        noted: list[str] = []
        ensure_calibration(store.path, store.manifest, "cpu", noted.append)
        assert len(noted) == expected


def test_measuring_again_keeps_the_other_stores(store: TinyStore, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", shapes=((64, 40), (40, 32)), seed=1)
    calibrate(store.path, "cpu", TINY)
    assert set(calibrate(other.path, "cpu", TINY).stores) == {store.manifest.digest, other.manifest.digest}


def test_a_small_store_does_not_stand_for_the_disk(
    store: TinyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own file is read instead, and is gone afterwards."""
    measured: list[list[Path]] = []
    original = measure.measure_disk
    monkeypatch.setattr(
        measure, "measure_disk", lambda files, effort: measured.append(files) or original(files, effort)
    )
    calibrate(store.path, "cpu", TINY)
    assert [file.parent for file in measured[0]] == [tmp_path / "cache"]
    assert list((tmp_path / "cache").glob("calibrate-*")) == []
    small = replace(TINY, scratch_bytes=4096)
    calibrate(store.path, "cpu", small)
    assert [file.name for file in measured[1]] == ["experts-00000.bin", "experts-00001.bin"]


def test_without_a_store_every_codec_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = (TensorSpec("gate_up_proj", 64, 48), TensorSpec("down_proj", 48, 32))
    monkeypatch.setattr(measure, "synthetic_stores", lambda folder: synthetic_stores(folder, specs=specs))
    found = calibrate(None, "cpu", TINY)
    assert sorted(speed.codec for speed in found.stores.values()) == codec_names()


def test_synthetic_weights_have_the_exponents_of_trained_ones(tmp_path: Path) -> None:
    specs = (TensorSpec("matrix", 512, 256),)
    stores = {path.name: read_manifest(path) for path in synthetic_stores(tmp_path, specs=specs)}
    record = stores["zstd"].record(next(stores["zstd"].expert_keys()))
    e_bytes = sum(chunk.nbytes for chunk in record.tensors[0].e_chunks)
    assert 0.30 < e_bytes / specs[0].weight_count < 0.36


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_workers_are_doubled_up_to_all_cores(cores: int, counts: list[int], tmp_path: Path) -> None:
    assert worker_counts(replace(machine_identity(tmp_path), cores=cores)) == counts
