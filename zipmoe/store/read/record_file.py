"""A file of records, read with O_DIRECT, or through the page cache where the file system refuses O_DIRECT."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from zipmoe.errors import CorruptData, InvalidRequest, ResourceExhausted, ZipMoeError
from zipmoe.store.format.layout import ALIGNMENT_BYTES
from zipmoe.system_error import CHECK_ACCESS, reason_of

_OUT_OF_RESOURCES = (errno.ENOMEM, errno.ENOBUFS)


class RecordFile:
    """An open file of records.

    `direct` is true while reads bypass the page cache. It turns false for good when the file system refuses O_DIRECT at
    open or at the first read. Buffered reads drop their pages from the page cache afterwards, so that no other pages
    are evicted.

    Thread: `read` may run in any number of threads at once; `close` only when no `read` is running.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        """Opens the file.

        Args:
            path: the file.
            nbytes: the size that the manifest gives.

        Raises:
            CorruptData: the file cannot be opened, is not a regular file or has another size.
            InvalidRequest: no permission to read the file.
            ResourceExhausted: too many files are open.
        """
        self.path = path
        self.direct = True
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise open_error(str(path), error) from error
            self._fd = _open_buffered(path)
            self.direct = False
        self._status = os.fstat(self._fd)
        if not stat.S_ISREG(self._status.st_mode) or self._status.st_size != nbytes:
            self.close()
            raise CorruptData(f"store file {path} is not a file of {nbytes} bytes but of {self._status.st_size}")
        if not self.direct:
            self._advise_random()

    def read(self, offset: int, *targets: memoryview) -> None:
        """Fills all buffers with the bytes of the file from `offset` on.

        Args:
            offset: a multiple of 4096.
            targets: writable buffers, filled one after the other. The size of each is a multiple of 4096; for O_DIRECT
                its address too.

        Raises:
            CorruptData: the file ends too early, or the device failed. The content of the buffers is undefined then.
            InvalidRequest: the memory is not aligned.
            ResourceExhausted: the kernel had no memory for the request.

        Thread: any; the GIL is released while the kernel reads.
        """
        nbytes = sum(map(len, targets))
        done = 0
        while done < nbytes:
            direct = self.direct
            try:
                count = os.preadv(self._fd, _from(done, targets), offset + done)
            except OSError as error:
                if error.errno == errno.EINVAL and direct:
                    self._leave_direct(targets)
                    continue
                raise self._read_error(error, offset + done) from error
            # A direct read can continue only at an aligned offset. A count that is not aligned means end of file.
            progress = count - count % ALIGNMENT_BYTES if direct and done + count < nbytes else count
            if progress == 0:
                raise CorruptData(f"{self.path} ends after {done + count} of {nbytes} bytes at {offset}{self.change()}")
            done += progress
        if not self.direct:
            os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def change(self) -> str:
        """Describes how the file has changed since it was opened, as the end of a message; empty if unchanged."""
        try:
            there = self.path.stat()
        except OSError as error:
            return f" (since it was opened the file has become unreadable: {reason_of(error)})"
        if (there.st_dev, there.st_ino) != (self._status.st_dev, self._status.st_ino):
            return " (since it was opened the file has been replaced by another)"
        if there.st_size != self._status.st_size:
            return f" (since it was opened the file went from {self._status.st_size} to {there.st_size} bytes)"
        if there.st_mtime_ns != self._status.st_mtime_ns:
            return " (since it was opened the file has been written to)"
        return ""

    def close(self) -> None:
        """Closes the file. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _leave_direct(self, targets: Sequence[memoryview]) -> None:
        """Handles EINVAL: raises if the caller's memory is not aligned, otherwise switches to buffered reads."""
        for target in targets:
            address = ctypes.addressof(ctypes.c_char.from_buffer(target))
            if address % ALIGNMENT_BYTES or len(target) % ALIGNMENT_BYTES:
                raise InvalidRequest(f"direct reads need memory aligned to {ALIGNMENT_BYTES} bytes, not {address:#x}")
        # The flag is dropped on the same descriptor, so running reads of other threads keep a valid descriptor.
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
        self.direct = False
        self._advise_random()

    def _advise_random(self) -> None:
        # Without this advice, read-ahead fetches records that are not needed.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def _read_error(self, error: OSError, offset: int) -> Exception:
        if error.errno in _OUT_OF_RESOURCES:
            return ResourceExhausted(f"no kernel memory to read {self.path} at {offset}: {reason_of(error)}")
        return CorruptData(f"cannot read {self.path} at {offset}: {reason_of(error)}{self.change()}")


def _from(skip: int, targets: Sequence[memoryview]) -> list[memoryview]:
    """Returns the parts of the buffers that are still empty after the first `skip` bytes are filled."""
    left = []
    for target in targets:
        if skip < len(target):
            left.append(target[skip:])
        skip = max(0, skip - len(target))
    return left


def _open_buffered(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise open_error(str(path), error) from error


def open_error(name: str, error: OSError) -> ZipMoeError:
    """Returns the error of a file that could not be opened: no descriptor is left, no permission, or damage."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceExhausted(f"cannot open {name}: {reason_of(error)}", next_step="raise the limit `ulimit -n`")
    if isinstance(error, PermissionError):
        return InvalidRequest(f"no permission to read {name}", next_step=CHECK_ACCESS)
    return CorruptData(f"cannot open {name}: {reason_of(error)}")
