"""Runs all measurements anew, or only the missing measurements, and keeps the results."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from zipmoe.calibration.calibration import Calibration, StoreSpeed
from zipmoe.calibration.calibration_file import cache_folder, load_calibration, save_calibration
from zipmoe.calibration.disk import DiskSpeed, measure_disk
from zipmoe.calibration.identity import MachineIdentity, machine_identity
from zipmoe.calibration.measurement_time import QUICK, MeasurementTime
from zipmoe.calibration.messages import measure_messages
from zipmoe.calibration.model_speed import ModelSpeed
from zipmoe.calibration.other_work import BUSY_RATIO, OtherWork
from zipmoe.calibration.recovery_speed import measure_recovery
from zipmoe.calibration.synthetic_store import synthetic_stores
from zipmoe.errors import ResourceExhausted
from zipmoe.store.format.manifest import Manifest, read_manifest

Note = Callable[[str], None]

_BLOCK_BYTES = 1 << 20


def calibrate(store: Path | None, device: str, effort: MeasurementTime, note: Note = lambda what: None) -> Calibration:
    """Measures everything anew and keeps the results.

    Args:
        store: store with the disk, codec and model to measure. None measures the cache folder's disk, every codec, and
            the FFN of an expert of Qwen1.5-MoE's widths.
        device: device that computes the model, `cpu` or `cuda`.
        effort: how much to measure.
        note: called with the name of each measurement that begins.

    Raises:
        NotFound, UnsupportedStore, CorruptData, InvalidRequest: the store cannot be read.
        ResourceExhausted: the disk is full.
        OSError: the cache folder cannot be written to.
    """
    if store is not None:
        calibration = _measure_disk(store, read_manifest(store), effort, note)
        calibration = _with_store(calibration, store, read_manifest(store), device, effort, note)
    else:
        cache_folder().mkdir(parents=True, exist_ok=True)
        calibration = _measure_disk(cache_folder(), None, effort, note)
        with tempfile.TemporaryDirectory(prefix="zipmoe-calibrate-") as folder:
            note("packing random experts")
            for path in synthetic_stores(Path(folder)):
                calibration = _with_store(calibration, path, read_manifest(path), device, effort, note)
    save_calibration(calibration)
    return calibration


def ensure_calibration(store: Path, manifest: Manifest, device: str, note: Note = lambda what: None) -> Calibration:
    """Returns the calibration of this machine with a store, after quick measurements of all missing parts.

    New measurements are kept. Parts that were measured while other processes kept the machine busy are measured again.

    Raises:
        As `calibrate`.

    Cost: reads a small file where no part is missing; else some seconds.
    """
    saved = calibration = load_calibration(machine_identity(store))
    if calibration is None or calibration.others_ratio > BUSY_RATIO:
        calibration = _measure_disk(store, manifest, QUICK, note)
    known = calibration.stores.get(manifest.digest)
    if known is None or device not in known.models or known.others_ratio > BUSY_RATIO:
        calibration = _with_store(calibration, store, manifest, device, QUICK, note)
    if calibration is not saved:
        save_calibration(calibration)
    return calibration


def _measure_disk(path: Path, manifest: Manifest | None, effort: MeasurementTime, note: Note) -> Calibration:
    identity = machine_identity(path)
    others = OtherWork()
    note("disk")
    if manifest is not None and sum(file.nbytes for file in manifest.files) >= effort.scratch_bytes:
        disk = measure_disk([path / file.name for file in manifest.files], effort)
    else:
        disk = _measure_scratch(path, manifest, effort)
    note("messages")
    messages = measure_messages(effort)
    earlier = load_calibration(identity)
    return Calibration(identity, effort.name, others.ratio(), disk, messages, dict(earlier.stores) if earlier else {})


def _measure_scratch(path: Path, manifest: Manifest | None, effort: MeasurementTime) -> DiskSpeed:
    """Measures the disk with a scratch file, because a small store would be read from caches.

    If the cache folder is on another disk than the store, the files of the store are read all the same.
    """
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    if manifest is not None and os.stat(cache).st_dev != os.stat(path).st_dev:
        return measure_disk([path / file.name for file in manifest.files], effort)
    with _scratch_file(cache, effort.scratch_bytes) as file:
        return measure_disk([file], effort)


@contextmanager
def _scratch_file(folder: Path, nbytes: int) -> Iterator[Path]:
    if shutil.disk_usage(folder).free < 2 * nbytes:
        raise ResourceExhausted(
            f"less than {2 * nbytes} bytes are free in {folder} to measure the disk with",
            next_step="free disk space there, or set ZIPMOE_CACHE_DIR to a folder on another disk",
        )
    descriptor, name = tempfile.mkstemp(dir=folder, prefix="calibrate-")
    try:
        with open(descriptor, "wb") as file:
            for _ in range(nbytes // _BLOCK_BYTES):
                file.write(os.urandom(_BLOCK_BYTES))  # random: neither compression nor deduplication helps the disk
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        os.unlink(name)


def _with_store(
    calibration: Calibration, store: Path, manifest: Manifest, device: str, effort: MeasurementTime, note: Note
) -> Calibration:
    others = OtherWork()
    note(f"recovery with {manifest.codec_name}")
    recover = measure_recovery(store, manifest, worker_counts(calibration.identity), effort)
    note(f"computing on {device}")
    known = calibration.stores.get(manifest.digest)
    models = {**(known.models if known else {}), device: _measure_model(store, manifest, device, effort)}
    speed = StoreSpeed(manifest.codec_name, manifest.max_tensor_bytes, others.ratio(), recover, models)
    return replace(calibration, stores={**calibration.stores, manifest.digest: speed})


def _measure_model(store: Path, manifest: Manifest, device: str, effort: MeasurementTime) -> ModelSpeed:
    from zipmoe.model.numerics import prepare_environment

    prepare_environment()  # before the import of torch, because the environment determines how MKL computes
    from zipmoe.calibration.compute import measure_model
    from zipmoe.model.experts.device import resolve_device

    return measure_model(store, manifest, resolve_device(device), effort)


def worker_counts(identity: MachineIdentity) -> list[int]:
    """Lists the numbers of workers to measure: powers of two below the number of cores, and the number of cores."""
    powers = [1 << power for power in range(identity.cores.bit_length()) if 1 << power < identity.cores]
    return [*powers, identity.cores]
