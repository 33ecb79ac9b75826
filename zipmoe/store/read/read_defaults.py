"""Default read settings of the expert store. Calibration, planner and simulator assume the same values."""

from __future__ import annotations

from typing import Final

IO_THREADS: Final = 4
"""Requests that the disk serves at the same time."""

REQUEST_BYTES: Final = 2 << 20
"""Size of one request to the disk."""
