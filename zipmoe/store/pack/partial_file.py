"""Files of a store while they are written: `NAME.partial` is renamed to `NAME` once complete and durable."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted, ZipMoeError
from zipmoe.regular_file import check_regular_file
from zipmoe.system_error import CHECK_ACCESS, reason_of

PARTIAL_SUFFIX = ".partial"

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_BUFFERS = 512
_WRITEBACK_BYTES = 32 << 20


class PartialFile:
    """A file that is written as `path` + `.partial`; `finish` renames it to `path`.

    Thread: one at a time.
    """

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Opens or creates the partial file and cuts it to `keep_bytes`, the bytes to keep from an earlier run.

        Raises:
            ResourceExhausted: the disk or the quota is full.
            InvalidRequest: no permission, a read-only file system, or the partial file is not a regular file.
            CorruptData: the device failed.
        """
        self.path = path
        self.nbytes = keep_bytes
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._behind = keep_bytes
        try:
            if self._partial.exists():
                check_regular_file(self._partial)
            self._fd = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            os.ftruncate(self._fd, keep_bytes)
        except OSError as error:
            raise write_error(self._partial, error) from error

    def append(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Appends some buffers in order; raises as the constructor does."""
        todo = [memoryview(buffer) for buffer in buffers if len(buffer)]
        try:
            while todo:
                count = os.pwritev(self._fd, todo[:_MAX_BUFFERS], self.nbytes)
                self.nbytes += count
                while todo and count >= len(todo[0]):
                    count -= len(todo.pop(0))
                if count:
                    todo[0] = todo[0][count:]
            if self.nbytes - self._behind >= _WRITEBACK_BYTES:
                # The kernel starts to write dirty pages without waiting, and drops the pages that are on disk. So a
                # pack neither fills the memory with pages nor ends with one long fsync.
                os.posix_fadvise(self._fd, 0, self.nbytes, os.POSIX_FADV_DONTNEED)
                self._behind = self.nbytes
        except OSError as error:
            raise write_error(self._partial, error) from error

    def finish(self) -> None:
        """Makes the content durable, then renames the file; raises as the constructor does."""
        try:
            os.fsync(self._fd)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.replace(self._partial, self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file and leaves it partial for the next run. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make_folder(path: Path) -> None:
    """Makes a folder of a store durably, if it does not exist; raises as `PartialFile` does."""
    try:
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable; OSError if the device fails."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_error(path: Path, error: OSError) -> ZipMoeError:
    """Translates an OSError of a write into an error with a next step for the user."""
    if error.errno in _NO_SPACE:
        free_bytes = shutil.disk_usage(path.parent).free
        return ResourceExhausted(
            f"cannot write {path}: {reason_of(error)}, {free_bytes} bytes are free",
            next_step="make room and run the same command again: it goes on where it stopped",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidRequest(f"no permission to write {path}: {reason_of(error)}", next_step=CHECK_ACCESS)
    return CorruptData(f"cannot write {path}: {reason_of(error)}", next_step="check the disk and the kernel's log")
