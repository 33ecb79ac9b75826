"""The journal of an unfinished pack: a list of the written data, from which the next run resumes.

The journal exists only while the destination is not yet a store. The lock on the journal keeps a second packer out.
Every event is a line `XXH3 JSON`, appended after the data that the event describes. A line that a crash has cut off
ends the journal.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zipmoe.errors import AlreadyRunning, CorruptData, InvalidRequest
from zipmoe.regular_file import check_regular_file
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.fields import Fields, canonical_json, parse_json, xxh3_text
from zipmoe.store.format.manifest import JOURNAL_NAME
from zipmoe.store.pack.partial_file import sync_directory, write_error

_FORMAT = "zipmoe-packing"
_VERSION = 1


class Journal:
    """The locked journal of one destination directory. One thread at a time."""

    def __init__(self, directory: Path, inputs: str) -> None:
        """Locks the directory and reads its journal. A new journal is `fresh`; then `begin` has to be called.

        Args:
            directory: the destination, an existing directory.
            inputs: checkpoint and options of the pack, as one string. A journal with other inputs is not resumed.

        Raises:
            AlreadyRunning: another process packs into the directory.
            InvalidRequest: the journal has other inputs or another version, the file is not a journal or not a
                regular file, or no permission to write it.
            ResourceExhausted: the disk is full.
        """
        self.path = directory / JOURNAL_NAME
        self._header: dict[str, object] = {"format": _FORMAT, "version": _VERSION, "inputs": inputs}
        self._fd = _open_locked(self.path)
        try:
            lines = self._read_lines()
            self.fresh = not lines
            if lines:
                self._check_header(lines.pop(0))
        except BaseException as error:
            # After any failure, also an interrupt, the lock must not outlive this object.
            self.close()
            if isinstance(error, OSError):
                raise write_error(self.path, error) from error
            raise
        self.events: list[dict[str, object]] = lines

    def begin(self) -> None:
        """Writes the header with the inputs into a fresh journal; raises as `append` does."""
        self.append(self._header, durable=True)
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error

    def append(self, event: dict[str, object], *, durable: bool = False) -> None:
        """Appends an event. With `durable`, the event survives a power failure after the call has returned.

        Raises:
            ResourceExhausted, InvalidRequest, CorruptData: as `write_error` says. The journal stays readable.
        """
        todo = memoryview(_format_line(event))
        try:
            while todo:
                todo = todo[os.write(self._fd, todo) :]
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from error

    def remove(self) -> None:
        """Deletes the journal of a complete store, and releases the lock."""
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Releases the lock and leaves the journal for the next run. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_lines(self) -> list[dict[str, object]]:
        """Reads the events up to the first incomplete line, cuts off the rest and moves to the end of the file."""
        with open(self._fd, "rb", closefd=False) as file:
            content = file.read()
        lines: list[dict[str, object]] = []
        whole_bytes = 0
        for line in content.splitlines(keepends=True):
            event = _parse_line(line)
            if event is None:
                break
            lines.append(event)
            whole_bytes += len(line)
        if not lines and not _format_line(self._header).startswith(content):
            raise InvalidRequest(f"{self.path} is not the journal of a pack", next_step="choose another destination")
        os.ftruncate(self._fd, whole_bytes)
        os.lseek(self._fd, whole_bytes, os.SEEK_SET)
        return lines

    def _check_header(self, header: dict[str, object]) -> None:
        fields = Fields(header, str(self.path))
        if fields.get("format") != _FORMAT or fields.get("version") != _VERSION:
            problem = f"{self.path} is of another version"
        elif fields.get("inputs") != self._header["inputs"]:
            problem = (
                f"{self.path.parent} holds an unfinished pack of another checkpoint, with other options or by "
                "another version"
            )
        else:
            return
        raise InvalidRequest(problem, next_step=f"finish that pack, or delete {self.path.parent} and start again")


def _open_locked(path: Path) -> int:
    while True:
        try:
            if path.exists():
                check_regular_file(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The packer that held the lock may have finished and deleted this file. Then a new file is created.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            step = "wait for it to end, or choose another destination"
            raise AlreadyRunning(f"another process is packing into {path.parent}", next_step=step) from error
        except OSError as error:
            os.close(descriptor)
            raise write_error(path, error) from error
        os.close(descriptor)


def _format_line(event: dict[str, object]) -> bytes:
    text = canonical_json(event)
    return xxh3_text(xxh3(text)).encode() + b" " + text + b"\n"


def _parse_line(line: bytes) -> dict[str, object] | None:
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or digest.decode("latin-1") != xxh3_text(xxh3(text)):
        return None
    try:
        event = parse_json(text, JOURNAL_NAME)
    except CorruptData:
        return None
    return event if isinstance(event, dict) else None
