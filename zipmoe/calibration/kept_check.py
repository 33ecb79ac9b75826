"""Keeps which passes were compared with stock's on the weights of a store, for this machine and these versions."""

from __future__ import annotations

from contextlib import suppress

from zipmoe.calibration.calibration_file import cache_folder, write_atomically
from zipmoe.calibration.identity import machine_and_versions
from zipmoe.store.format.checksum import xxh3


class KeptCheck:
    """The note that a check has ended without a difference, also if it ended because its time was over."""

    def __init__(self, digest: str, *settings: object) -> None:
        """Names the note of a store's digest and the settings that the passes depend on."""
        name = f"{xxh3(repr((digest, settings, machine_and_versions())).encode()):016x}"
        self._file = cache_folder() / "start" / name

    @property
    def done(self) -> bool:
        """Whether the note exists."""
        return self._file.exists()

    def keep(self) -> None:
        """Writes the note. If it cannot be written, the next start checks again."""
        with suppress(OSError):
            write_atomically(self._file, b"")
