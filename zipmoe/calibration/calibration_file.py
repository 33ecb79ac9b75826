"""Keeps calibrations between runs, with a file per machine in the user's cache folder."""

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
    """Returns the folder of all data that can be measured or learnt again.

    The folder is ZIPMOE_CACHE_DIR, else XDG_CACHE_HOME/zipmoe, else ~/.cache/zipmoe.
    """
    if chosen := os.environ.get("ZIPMOE_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zipmoe"


def calibration_path(identity: MachineIdentity) -> Path:
    """Returns the path of the calibration file of a machine."""
    return cache_folder() / "calibration" / f"{identity.digest}.json"


def load_calibration(identity: MachineIdentity) -> Calibration | None:
    """Reads the calibration of a machine; None if the file is missing, damaged or of another version."""
    try:
        calibration = _ADAPTER.validate_json(calibration_path(identity).read_bytes())
    except (OSError, ValidationError, InvalidRequest):
        return None
    return calibration if calibration.identity == identity else None


def save_calibration(calibration: Calibration) -> Path:
    """Writes the calibration of a machine atomically: readers see the old file or the new file.

    Returns:
        The file.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = calibration_path(calibration.identity)
    write_atomically(path, _ADAPTER.dump_json(calibration, indent=1) + b"\n")
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the content of a file atomically, and creates the folder if missing; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
