"""Reads pieces of tensors from checkpoint shards, without mapping or parsing the shards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from zipmoe.errors import CorruptData, NotFound
from zipmoe.regular_file import open_regular_file
from zipmoe.store.pack.source import ByteRange, Piece, ranges_of
from zipmoe.store.read.record_file import open_error
from zipmoe.system_error import reason_of

_DOWNLOAD_AGAIN = "download the checkpoint again"


class PieceReader:
    """Reads pieces of tensors, and keeps the checkpoint's shards open until `close`.

    Thread: `read` may run in any number of threads at once and releases the GIL; `close` only when no `read` runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptors: dict[Path, int] = {}

    def check(self, pieces: Iterable[Piece]) -> None:
        """Checks, before any work begins, that every byte range of the pieces lies inside its shard.

        Raises:
            NotFound: a shard is missing.
            InvalidRequest: no permission to read a shard, or it is not a regular file.
            CorruptData: a shard is truncated: it ends before a piece ends.
        """
        sizes: dict[Path, int] = {}
        for place in ranges_of(pieces):
            if place.path not in sizes:
                sizes[place.path] = os.fstat(self._descriptor(place.path)).st_size
            if place.offset < 0 or place.nbytes < 0 or place.offset + place.nbytes > sizes[place.path]:
                raise CorruptData(
                    f"shard {place.path} is truncated: it has {sizes[place.path]} bytes, "
                    f"but tensor bytes reach up to {place.offset + place.nbytes}",
                    next_step=_DOWNLOAD_AGAIN,
                )

    def read(self, pieces: Sequence[Piece], target: memoryview, skip: int = 0) -> None:
        """Reads the concatenation of some pieces, from byte `skip` on, until `target` is full.

        Args:
            pieces: byte ranges of shards or derived pieces, with at least `skip + len(target)` bytes together.
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
                part = target[filled : filled + nbytes]
                if isinstance(piece, ByteRange):
                    self._read_range(ByteRange(piece.path, piece.offset + begin, nbytes), part)
                else:
                    piece.derive(self._read_range, part, begin)
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

    def _read_range(self, place: ByteRange, target: memoryview) -> None:
        path, offset = place.path, place.offset
        descriptor = self._descriptor(path)
        done = 0
        while done < len(target):
            try:
                count = os.preadv(descriptor, [target[done:]], offset + done)
            except OSError as error:
                raise CorruptData(
                    f"cannot read shard {path} at {offset + done}: {reason_of(error)}",
                    next_step=f"check the disk; {_DOWNLOAD_AGAIN}",
                ) from error
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
