"""Holds bytes of a checkpoint that cannot be mapped in a file that exists in memory only."""

from __future__ import annotations

import os
from pathlib import PosixPath
from typing import Self
from weakref import finalize


class MemoryFile(PosixPath):
    """The path of a file in anonymous memory. The memory is freed with the last reference to the object."""

    @classmethod
    def create(cls) -> Self:
        """Creates an empty file."""
        descriptor = os.memfd_create("zipmoe-checkpoint", os.MFD_CLOEXEC)
        path = cls(f"/proc/self/fd/{descriptor}")
        finalize(path, os.close, descriptor)
        return path

    def append(self, content: memoryview) -> int:
        """Writes bytes at the end and returns the offset of the first; OSError where memory is exhausted."""
        with self.open("ab") as file:
            offset = file.tell()
            file.write(content)
        return offset
