"""A long-lived bidirectional stream for synchronous callers: sending never waits, a thread receives the responses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # the builtin one from 3.11 on
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import grpc
import structlog

from zipmoe.errors import DeadlineExceeded, InternalError, Unavailable, ZipMoeError
from zipmoe.rpc.status import to_error

CLOSE_TIMEOUT_S = 5.0
"""Longest wait for the peer to end a closed stream; the peer lets running writes end first."""

_LOG = structlog.get_logger(__name__)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class MessageStream(Generic[_Request, _Response]):
    """A session over a bidirectional stream, from the first response until either side ends the stream.

    Thread: `send` and `close` from any. `received` and `lost` are called from the stream's reader thread: `received`
    for every response but the first, `lost` at most once, as the last call, and never after `close`.
    """

    def __init__(
        self,
        name: str,
        method: Callable[[Iterator[_Request]], Any],
        received: Callable[[_Response], None],
        lost: Callable[[ZipMoeError], None],
    ) -> None:
        self._name = name
        self._method = method
        self._received = received
        self._lost = lost
        self._outgoing: SimpleQueue[_Request | None] = SimpleQueue()  # None ends the stream
        self._first: Future[_Response] = Future()
        self._closing = False
        self._call: Any = None
        self._reader = threading.Thread(target=self._run, name=f"{name}-reader", daemon=True)

    def open(self, timeout_s: float) -> _Response:
        """Opens the stream and waits for the first response.

        Raises:
            Unavailable: the peer does not answer.
            DeadlineExceeded: the first response did not come in time.
            ZipMoeError: error with which the peer refused the session.
        """
        self._call = self._method(iter(self._outgoing.get, None))
        self._reader.start()
        try:
            return self._first.result(timeout_s)
        except FutureTimeout:
            self.close(0.0)
            raise DeadlineExceeded(f"{self._name} did not open within {timeout_s:g} s") from None

    def send(self, message: _Request) -> None:
        """Queues a message; after a loss the message is dropped."""
        self._outgoing.put(message)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Ends the stream and waits until the peer has ended the stream as well.

        The peer ends the stream when all leases are gone. A peer that takes longer than `timeout_s` is cut off.
        Idempotent.
        """
        self._closing = True
        self._outgoing.put(None)
        if self._call is None or threading.current_thread() is self._reader:
            return
        self._reader.join(timeout_s)
        if self._reader.is_alive():
            self._call.cancel()
            self._reader.join()

    def _run(self) -> None:
        error: ZipMoeError = Unavailable(f"{self._name} was ended by its peer")
        try:
            for response in self._call:
                if self._first.done():
                    self._received(response)
                else:
                    self._first.set_result(response)
        except grpc.RpcError as failure:
            error = to_error(failure)
        except Exception:
            _LOG.exception("response_unhandled", session=self._name)
            self._call.cancel()
            error = InternalError(f"{self._name}: a response could not be handled, see the log")
        self._outgoing.put(None)  # ends gRPC's own thread, which waits for the next message
        if not self._first.done():
            self._first.set_exception(error)
        elif not self._closing:
            self._lost(error)
