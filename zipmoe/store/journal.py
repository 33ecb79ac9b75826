"""The journal of a pack under way: what has been written, so that the next run goes on from there.

It exists only while DST is not yet a store, and its lock keeps a second packer out. One line an event, appended after
the bytes it speaks of: `XXH3 JSON`. A line that was torn by a crash ends the journal.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zipmoe.errors import AlreadyRunning, CorruptData, InvalidRequest, ZipMoeError
from zipmoe.store.checksum import xxh3
from zipmoe.store.fields import Fields, canonical_json, parse_json, xxh3_text
from zipmoe.store.manifest import JOURNAL_NAME
from zipmoe.store.partial_file import sync_directory, write_error

_FORMAT = "zipmoe-packing"
_VERSION = 1


class Journal:
    """The locked journal of one destination directory. One thread at a time."""

    def __init__(self, directory: Path, inputs: str) -> None:
        """Locks the directory and opens its journal, or starts one.

        Args:
            directory: the destination; exists.
            inputs: what is packed and how, as one string; a journal of other inputs is not resumed.

        Raises:
            AlreadyRunning: another process packs into the directory.
            InvalidRequest: the journal is of other inputs or another version; or no permission.
            ResourceExhausted: the disk is full.
        """
        self.path = directory / JOURNAL_NAME
        self._fd = _open_locked(self.path)
        try:
            lines = self._read_lines()
            self.fresh = not lines
            if lines:
                self._check_header(lines.pop(0), inputs)
            else:
                self.append({"format": _FORMAT, "version": _VERSION, "inputs": inputs}, durable=True)
                sync_directory(directory)
        except OSError as error:
            self.close()
            raise write_error(self.path, error) from error
        except ZipMoeError:
            self.close()
            raise
        self.events: list[dict[str, object]] = lines

    def append(self, event: dict[str, object], *, durable: bool = False) -> None:
        """Adds one event; with `durable`, it survives a power failure once this returns.

        Raises:
            ResourceExhausted, InvalidRequest, CorruptData: as `write_error` says. The journal stays readable.
        """
        line = canonical_json(event)
        todo = memoryview(xxh3_text(xxh3(line)).encode() + b" " + line + b"\n")
        try:
            while todo:
                todo = todo[os.write(self._fd, todo) :]
            if durable:
                os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.path, error) from error

    def remove(self) -> None:
        """Deletes the journal, when the store is complete, and gives up the lock."""
        try:
            self.path.unlink()
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Gives up the lock and leaves the journal for the next run. Closing twice is allowed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_lines(self) -> list[dict[str, object]]:
        """Reads the events up to the first line that is not whole, cuts off the rest and stands at the end."""
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
        os.ftruncate(self._fd, whole_bytes)
        os.lseek(self._fd, whole_bytes, os.SEEK_SET)
        return lines

    def _check_header(self, header: dict[str, object], inputs: str) -> None:
        fields = Fields(header, str(self.path))
        if fields.get("format") != _FORMAT or fields.get("version") != _VERSION:
            problem = f"{self.path} is of another version"
        elif fields.get("inputs") != inputs:
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
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The packer that held the lock may just have finished and deleted this file: then start afresh.
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


def _parse_line(line: bytes) -> dict[str, object] | None:
    digest, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or digest.decode("latin-1") != xxh3_text(xxh3(text)):
        return None
    try:
        event = parse_json(text, JOURNAL_NAME)
    except CorruptData:
        return None
    return event if isinstance(event, dict) else None
