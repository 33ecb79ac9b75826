"""Reads byte ranges of checkpoint shards, without mapping or parsing the shards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from zipmoe.errors import CorruptData, NotFound
from zipmoe.regular_file import open_regular_file
from zipmoe.store.pack.source import ByteRange
from zipmoe.store.read.record_file import open_error
from zipmoe.system_error import reason_of

_DOWNLOAD_AGAIN = "download the checkpoint again"


class PieceReader:
    """Reads byte ranges of checkpoint shards, and keeps the shards open until `close`.

    Thread: `read` may run in any number of threads at once and releases the GIL; `close` only when no `read` runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def check(self, pieces: Iterable[ByteRange]) -> None:
        """Checks, before any work begins, that every piece lies inside its shard.

        Raises:
            NotFound: a shard is missing.
            InvalidRequest: no permission to read a shard, or it is not a regular file.
            CorruptData: a shard is truncated: it ends before a piece ends.
        """
        sizes: dict[Path, int] = {}
        for piece in pieces:
            if piece.path not in sizes:
                sizes[piece.path] = os.fstat(self._descriptor(piece.path)).st_size
            if piece.offset < 0 or piece.nbytes < 0 or piece.offset + piece.nbytes > sizes[piece.path]:
                raise CorruptData(
                    f"shard {piece.path} is truncated: it has {sizes[piece.path]} bytes, "
                    f"but tensor bytes reach up to {piece.offset + piece.nbytes}",
                    next_step=_DOWNLOAD_AGAIN,
                )

    def read(self, pieces: Sequence[ByteRange], target: memoryview, skip: int = 0) -> None:
        """Reads the concatenation of some pieces, from byte `skip` on, until `target` is full.

        Args:
            pieces: ranges of shards, with at least `skip + len(target)` bytes together.
            target: writable bytes.
            skip: bytes at the start of the concatenation that are not read.

        Raises:
            NotFound, InvalidRequest: a shard cannot be opened.
            CorruptData: a shard ends too early or the device failed. `target` is undefined then.
        """
        filled = 0
        for piece in pieces:
            begin = min(skip, piece.nbytes)
            skip -= begin
            nbytes = min(piece.nbytes - begin, len(target) - filled)
            if nbytes:
                self._read_piece(piece.path, piece.offset + begin, target[filled : filled + nbytes])
                filled += nbytes
        if filled != len(target):
            raise CorruptData(f"pieces end after {filled} of {len(target)} bytes")

    def whole_file(self, path: Path) -> ByteRange:
        """Returns the range of all bytes of a file; raises as `read` does."""
        return ByteRange(path, 0, os.fstat(self._descriptor(path)).st_size)

    def close(self) -> None:
        """Closes all shards."""
        with self._lock:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()

    def _read_piece(self, path: Path, offset: int, target: memoryview) -> None:
        descriptor = self._descriptor(path)
        done = 0
        while done < len(target):
            try:
                count = os.preadv(descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise CorruptData(f"cannot read shard {path} at {offset + done}: {reason_of(error)}") from error
            if count == 0:
                raise CorruptData(
                    f"shard {path} is truncated: it ends at {offset + done}, but tensor bytes reach up to "
                    f"{offset + len(target)}",
                    next_step=_DOWNLOAD_AGAIN,
                )
            done += count
        # A checkpoint is read once and often larger than memory, so its cached pages would only evict other pages.
        os.posix_fadvise(descriptor, offset, len(target), os.POSIX_FADV_DONTNEED)

    def _descriptor(self, path: Path) -> int:
        with self._lock:
            if path not in self._descriptors:
                try:
                    self._descriptors[path] = open_regular_file(path)
                except FileNotFoundError as error:
                    raise NotFound(f"shard {path} is missing", next_step=_DOWNLOAD_AGAIN) from error
                except OSError as error:
                    raise open_error(f"shard {path}", error) from error
            return self._descriptors[path]
