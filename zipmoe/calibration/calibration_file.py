"""Keeps calibrations between runs, one file a machine in the user's cache folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from zipmoe.calibration.calibration import Calibration
from zipmoe.calibration.identity import MachineIdentity
from zipmoe.errors import InvalidRequest

_ADAPTER = TypeAdapter(Calibration)


def cache_folder() -> Path:
    """The folder of everything that can be measured or learnt again.

    ZIPMOE_CACHE_DIR, else XDG_CACHE_HOME/zipmoe, else ~/.cache/zipmoe.
    """
    if chosen := os.environ.get("ZIPMOE_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zipmoe"


def calibration_path(identity: MachineIdentity) -> Path:
    """Where the figures of a machine are kept."""
    return cache_folder() / "calibration" / f"{identity.digest}.json"


def load_calibration(identity: MachineIdentity) -> Calibration | None:
    """Reads the figures of a machine; None where there are none, or the file is of another version or damaged."""
    try:
        calibration = _ADAPTER.validate_json(calibration_path(identity).read_bytes())
    except (OSError, ValidationError, InvalidRequest):
        return None
    return calibration if calibration.identity == identity else None


def save_calibration(calibration: Calibration) -> Path:
    """Writes the figures of a machine; readers see the old file or the new one.

    Returns:
        The file.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = calibration_path(calibration.identity)
    write_atomically(path, _ADAPTER.dump_json(calibration, indent=1) + b"\n")
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces a file's content at once, and makes its folder where there is none; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
