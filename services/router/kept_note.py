"""Keeps short findings about the passes of a store, for this machine and these versions."""

from __future__ import annotations

from contextlib import suppress

from zipmoe.calibration.calibration_file import cache_folder, write_atomically
from zipmoe.calibration.identity import machine_and_versions
from zipmoe.store.format.checksum import xxh3


class KeptNote:
    """A text that is kept in a file of the user's cache."""

    def __init__(self, kind: str, digest: str, *settings: object) -> None:
        """Names the note.

        Args:
            kind: what the note is about; the name of a folder.
            digest: digest of the store's manifest.
            settings: everything else that the finding depends on, apart from machine and versions.
        """
        name = xxh3(repr((digest, settings, machine_and_versions())).encode())
        self._file = cache_folder() / kind / f"{name:016x}"

    def read(self) -> str | None:
        """Returns the text; None if there is no note."""
        try:
            return self._file.read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def keep(self, text: str) -> None:
        """Writes the note. If it cannot be written, the next start finds out again."""
        with suppress(OSError):
            write_atomically(self._file, text.encode())
