"""The journal of a pack under way: what has been written, so that the next run goes on from there.

It exists only while DST is not yet a store, and its lock keeps a second packer out. One line an event, appended after
the bytes it speaks of: `XXH3 JSON`. A line that was torn by a crash ends the journal.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from zipmoe.errors import AlreadyRunning, CorruptData, InvalidRequest
from zipmoe.store.format.checksum import xxh3
from zipmoe.store.format.fields import Fields, canonical_json, parse_json, xxh3_text
from zipmoe.store.format.manifest import JOURNAL_NAME
from zipmoe.store.pack.partial_file import sync_directory, write_error

_FORMAT = "zipmoe-packing"
_VERSION = 1


class Journal:
    """The locked journal of one destination directory. One thread at a time."""

    def __init__(self, directory: Path, inputs: str) -> None:
        """Locks the directory and reads its journal; if there is none it is `fresh`, and `begin` has to be called.

        Args:
            directory: the destination; exists.
            inputs: what is packed and how, as one string; a journal of other inputs is not resumed.

        Raises:
            AlreadyRunning: another process packs into the directory.
            InvalidRequest: the journal is of other inputs or another version, or no journal at all; or no permission.
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
            # Whatever it was, an interrupt too: the lock must not outlive this object.
            self.close()
            if isinstance(error, OSError):
                raise write_error(self.path, error) from error
            raise
        self.events: list[dict[str, object]] = lines

    def begin(self) -> None:
        """Writes what is packed into a fresh journal; raises as `append` does."""
        self.append(self._header, durable=True)
        try:
            sync_directory(self.path.parent)
        except OSError as error:
            raise write_error(self.path, error) from error

    def append(self, event: dict[str, object], *, durable: bool = False) -> None:
        """Adds one event; with `durable`, it survives a power failure once this returns.

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
