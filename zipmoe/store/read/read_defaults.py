"""Default read settings of the expert store and of `StoreReader`. Calibration and plans assume the same values."""

from __future__ import annotations

from typing import Final

IO_THREADS: Final = 4
"""Requests that the disk serves at the same time."""

REQUEST_BYTES: Final = 2 << 20
"""Size of one request to the disk. benchmarks/NOTES.md, "Size of a read request", has the measurement."""
