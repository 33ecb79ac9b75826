"""Looks up the measured costs of this machine with a store, without a measurement."""

from __future__ import annotations

from pathlib import Path

from zipmoe.arena.tensor_form import BF16
from zipmoe.calibration.calibration_file import load_calibration
from zipmoe.calibration.identity import machine_identity
from zipmoe.errors import NotFound
from zipmoe.planning.costs import Costs
from zipmoe.store.format.manifest import Manifest
from zipmoe.store.read.read_defaults import IO_THREADS, REQUEST_BYTES


def calibrated_costs(
    store: Path,
    manifest: Manifest,
    device: str,
    worker_count: int,
    *,
    compressed: bool = False,
    tensor_form: str = BF16,
) -> Costs:
    """Looks up the costs of a store on this machine, for the expert store's default queue depth and request size.

    Dense weights are compressed in memory, or bf16; recovered experts have `tensor_form`.

    Raises:
        NotFound: the machine has not been measured, or not with this store and device.
    """
    calibration = load_calibration(machine_identity(store))
    if calibration is None:
        raise NotFound("this machine has not been measured", next_step="run `zipmoe calibrate STORE`")
    return calibration.costs(
        manifest.digest,
        device=device,
        worker_count=worker_count,
        io_threads=IO_THREADS,
        request_bytes=REQUEST_BYTES,
        compressed=compressed,
        tensor_form=tensor_form,
    )
