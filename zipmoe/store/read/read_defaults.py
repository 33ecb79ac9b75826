"""How the expert store reads unless told otherwise: what it is started with, and what is measured and planned for."""

from __future__ import annotations

from typing import Final

IO_THREADS: Final = 4
"""Requests at the disk at the same time."""

REQUEST_BYTES: Final = 2 << 20
"""Size of one request to the disk."""
