"""Records the experts that every layer of every step uses; see `zipmoe.simulation.trace` for the format."""

from __future__ import annotations

from pathlib import Path

import structlog

from zipmoe.errors import NotFound
from zipmoe.simulation.trace import RoutedPass, trace_line
from zipmoe.system_error import reason_of

_LOG = structlog.get_logger(__name__)


class TraceFile:
    """A trace file that grows while requests are served.

    When the disk is full, recording ends after a whole line of the file and the log reports it. Serving goes on.

    Thread: the model thread only.
    """

    def __init__(self, path: Path) -> None:
        """Begins a new file, and replaces an existing one.

        Raises:
            NotFound: the file cannot be made.
        """
        self.path = path
        self._written_bytes = 0
        self._pending: list[str] = []
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise NotFound(f"cannot write the trace {path}: {reason_of(error)}") from error

    def add(self, routed: RoutedPass) -> None:
        """Adds a layer pass; the next `flush` writes it to the file."""
        if not self._file.closed:
            self._pending.append(trace_line(routed))

    def flush(self) -> None:
        """Writes the added passes; called once a step, so that the file rarely ends within a step."""
        if not self._pending or self._file.closed:
            return
        data = ("\n".join(self._pending) + "\n").encode()
        self._pending.clear()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            _LOG.error(
                "trace_ended", path=str(self.path), reason=reason_of(error), steps_are_kept_until=self._written_bytes
            )
            self._file.truncate(self._written_bytes)
            self._file.close()
            return
        self._written_bytes += len(data)

    def close(self) -> None:
        """Writes the rest and closes the file."""
        self.flush()
        self._file.close()
