"""Open HTTP connections: how long idle ones live, and which of them make room for others."""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass
from typing import Any, Final, Protocol

from uvicorn.protocols.http.h11_impl import H11Protocol

from zipmoe.errors import InvalidRequest

_HEADROOM: Final = 8
"""Idle connections are closed from the moment when less than 1/8 of the places are free."""

_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\nretry-after: 1\r\nconnection: close\r\n\r\n%s"
)
_FULL_BODY: Final = (
    b'{"error":{"message":"the gateway has as many connections as --max-connections allows",'
    b'"type":"server_error","param":null,"code":"too_many_connections"}}'
)


_USUAL_CONNECTIONS: Final = 1024
_OTHER_FILES: Final = 64
"""Files that the process opens beside connections: sockets, the router's channel, metrics, the log, libraries."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the HTTP connections.

    Attributes:
        most: connections at a time.
        idle_s: seconds after which a connection without a request is closed.
    """

    most: int = _USUAL_CONNECTIONS
    idle_s: float = 75.0

    @classmethod
    def here(cls, most: int | None, idle_s: float) -> ConnectionLimits:
        """Returns limits that the process's limit of open files allows; without a number, the usual one or less.

        Raises:
            InvalidRequest: so many connections need more open files than the process may have.
        """
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        room = most or _USUAL_CONNECTIONS if files == resource.RLIM_INFINITY else max(1, files - _OTHER_FILES)
        if most is not None and most > room:
            raise InvalidRequest(
                f"{most} connections need {most + _OTHER_FILES} open files, this process may have {files}",
                next_step=f"raise the limit of open files (ulimit -n), or give --max-connections={room} or less",
            )
        return cls(min(most or _USUAL_CONNECTIONS, room), idle_s)


class Closable(Protocol):
    """A connection as its places see it."""

    def close(self) -> None:
        """Closes the connection."""
        ...


class ConnectionPlaces:
    """Places for connections. A connection is idle while no request is being answered on it.

    Thread: the event loop. Pure decisions: no clock, no I/O but `close`.
    """

    def __init__(self, most: int) -> None:
        """Offers `most` places, at least 1."""
        self._most = most
        self._open: set[Closable] = set()
        self._idle: dict[Closable, None] = {}
        """Idle connections, longest idle first."""

    def __repr__(self) -> str:
        return f"{len(self._open)} open, {len(self._idle)} idle, {self._most} places"

    def take(self, connection: Closable) -> bool:
        """Gives a new connection a place, idle at first, and closes the longest idle ones if few places are free.

        Returns:
            Whether there was a place; False if a request is being answered on every connection.
        """
        while len(self._open) >= self._most - self._most // _HEADROOM and self._idle:
            oldest = next(iter(self._idle))
            self.leave(oldest)
            oldest.close()
        if len(self._open) >= self._most:
            return False
        self._open.add(connection)
        self._idle[connection] = None
        return True

    def answers(self, connection: Closable) -> None:
        """Notes that a request is being answered."""
        self._idle.pop(connection, None)

    def idles(self, connection: Closable) -> None:
        """Notes that no request is being answered any more. Without effect on a connection that is idle already."""
        if connection in self._open:
            self._idle.setdefault(connection)

    def leave(self, connection: Closable) -> None:
        """Frees the place of a connection. A repeated call has no effect."""
        self._open.discard(connection)
        self._idle.pop(connection, None)


class HttpConnection(H11Protocol):
    """uvicorn's HTTP connection with a place, and with an end to idleness.

    A connection is idle until the headers of its first request are complete, and from the end of an answer to the
    headers of the next request. Single bytes of a request do not prolong that.
    """

    def __init__(self, places: ConnectionPlaces, idle_s: float, **settings: Any) -> None:
        """Makes a connection that takes a place when it opens.

        Args:
            places: the places of all connections.
            idle_s: seconds of idleness after which the connection is closed.
            settings: uvicorn's own.
        """
        super().__init__(**settings)
        self._places = places
        self._idle_s = idle_s
        self._idle_end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a place, or refuses the client."""
        super().connection_made(transport)
        if self._places.take(self):
            self._settle()
        else:
            transport.write(_FULL % (len(_FULL_BODY), _FULL_BODY))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Frees the place."""
        self._places.leave(self)
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """Goes on with a further request or idles."""
        super().on_response_complete()
        self._settle()

    def close(self) -> None:
        """Closes the connection, which is idle."""
        self._stop_timer()
        self.timeout_keep_alive_handler()

    def _settle(self) -> None:
        """Tells the places whether a request is being answered, and starts or stops the timer of idleness."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._places.answers(self)
            self._stop_timer()
        elif not self.transport.is_closing():
            self._places.idles(self)
            if self._idle_end is None:
                self._idle_end = self.loop.call_later(self._idle_s, self.close)

    def _stop_timer(self) -> None:
        if self._idle_end is not None:
            self._idle_end.cancel()
            self._idle_end = None
