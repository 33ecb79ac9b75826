"""Checks the disk that holds the store."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zipmoe.calibration.calibration_file import load_calibration
from zipmoe.calibration.identity import disk_name, machine_identity
from zipmoe.doctor.finding import Finding, fail, ok, warn
from zipmoe.store.read.aligned_memory import aligned_memory
from zipmoe.system_error import reason_of

SLOW_BYTES_PER_S = 0.5e9
_PROBE_BYTES = 4096


def check_storage(path: Path) -> Iterator[Finding]:
    """Checks the disk of a store, or of a folder for future stores.

    Raises:
        NotFound: there is no such file or directory.
    """
    yield check_direct_reads(path)
    yield check_bandwidth(path)


def check_direct_reads(path: Path) -> Finding:
    """Tries a direct read (O_DIRECT), from an expert file if there is one."""
    disk = disk_name(path)
    try:
        with _probe_file(path) as file:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            try:
                os.preadv(descriptor, [aligned_memory(_PROBE_BYTES)], 0)
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno == errno.EINVAL:
            advice = "keep the store on ext4, xfs or btrfs: through the page cache reads are slower and evict memory"
            return warn("direct reads", f"{disk} refuses O_DIRECT", advice)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return warn(
                "direct reads", f"not tried on {disk}: {reason_of(error)}", "name a packed store: its files are read"
            )
        return fail("direct reads", f"{disk}: {reason_of(error)}", "check the disk, and that the path can be read")
    return ok("direct reads", f"{disk} accepts O_DIRECT")


def check_bandwidth(path: Path) -> Finding:
    """Checks the bandwidth of the disk in its last calibration."""
    identity = machine_identity(path)
    calibration = load_calibration(identity)
    if calibration is None:
        return warn("disk bandwidth", "not measured", "run `zipmoe calibrate STORE`")
    best = max(calibration.disk.points, key=lambda point: point.bytes_per_s)
    found = (
        f"{best.bytes_per_s / 1e9:.2f} GB/s with {best.queue_depth} x {best.request_bytes >> 10} KiB at once, "
        f"latency {calibration.disk.latency_s * 1e6:.0f} us"
    )
    if best.bytes_per_s < SLOW_BYTES_PER_S:
        return warn("disk bandwidth", found, "keep the store on an NVMe disk: every miss waits for it")
    return ok("disk bandwidth", found)


@contextmanager
def _probe_file(path: Path) -> Iterator[Path]:
    """Yields a file to read: `path` itself, an expert file in `path`, or a temporary file in `path`."""
    if path.is_file():
        yield path
        return
    store_file = next((file for file in sorted(path.glob("experts-*.bin")) if file.stat().st_size), None)
    if store_file is not None:
        yield store_file
        return
    descriptor, name = tempfile.mkstemp(dir=path, prefix=".zipmoe-doctor-")
    try:
        with open(descriptor, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)
