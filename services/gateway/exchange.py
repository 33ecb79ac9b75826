"""An HTTP request and its answer: limits on the body, a client that may disconnect, one response or stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from zipmoe.services.gateway.http_problem import ErrorForm, HttpProblem, openai_error
from zipmoe.services.gateway.json_frames import to_json

_NO_HEADERS: Final[Mapping[str, str]] = {}
_EVENT_STREAM: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    # Without this header, proxies such as nginx collect tokens into blocks.
    "x-accel-buffering": "no",
}


class ClientGone(Exception):
    """The client went away before its answer was complete."""


class Exchange:
    """Reads a request and writes its answer.

    Attributes:
        request: the HTTP request.
        request_id: id of the request in logs and in the answer.
        status: status code of the answer; None before the answer begins.
        headers: headers that the answer carries whatever it is.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_id: str,
        error_form: ErrorForm = openai_error,
    ) -> None:
        """Takes a request.

        Args:
            scope: ASGI's description of the request.
            receive: ASGI's channel from the client.
            send: ASGI's channel to the client.
            request_id: id of the request.
            error_form: form of errors before an answer begins.
        """
        self.request = Request(scope, receive)
        self.request_id = request_id
        self.status: int | None = None
        self.headers: Mapping[str, str] = {}
        self._receive = receive
        self._send = send
        self._error_form = error_form
        self._failure: Callable[[HttpProblem], bytes] = _no_stream

    async def body(self, max_bytes: int, timeout_s: float) -> bytes:
        """Reads the body.

        Raises:
            HttpProblem: the content type is not JSON, or the body is too long or not complete in time.
            ClientGone: the client disconnected before the end of the body.
        """
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also keeps web pages of other origins out: browsers send other content types without a preflight request.
            raise HttpProblem(415, f"the body has to be application/json, not {kind or 'of no type'}")
        declared = self.request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > max_bytes:
            raise _too_long(max_bytes)
        try:
            return await asyncio.wait_for(self._read(max_bytes), timeout_s)
        except TimeoutError as error:
            raise HttpProblem(408, f"the body did not come within {timeout_s:g} s") from error
        except ClientDisconnect as error:
            raise ClientGone from error

    async def _read(self, max_bytes: int) -> bytes:
        body = bytearray()
        async for piece in self.request.stream():
            body += piece
            if len(body) > max_bytes:
                raise _too_long(max_bytes)
        return bytes(body)

    async def while_connected(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work that answers the request, while the client stays connected. Read the body before.

        Raises:
            ClientGone: the client disconnected; the work has been cancelled.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(self._until_gone())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientGone
            await working
        finally:
            for task in (working, watching):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):  # an error of finished work was raised above
                await working

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def answer(self, status: int, value: Any, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        """Answers with one JSON object."""
        body = to_json(value)
        sized = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        await self._start(status, sized)
        await self._write(body, more=False)

    async def permit(self, headers: Mapping[str, str]) -> None:
        """Answers without a body."""
        await self._start(204, headers)
        await self._write(b"", more=False)

    async def stream(self, events: AsyncIterator[bytes], failure: Callable[[HttpProblem], bytes]) -> None:
        """Answers with server-sent events; waits for a client that reads slowly.

        Args:
            events: the events.
            failure: makes the last event of a stream that fails.
        """
        self._failure = failure
        await self._start(200, _EVENT_STREAM)
        async for event in events:
            await self._write(event, more=True)
        await self._write(b"", more=False)

    async def fail(self, problem: HttpProblem) -> None:
        """Answers with an error; if a stream has begun, the error is its last event."""
        if self.status is None:
            await self.answer(problem.status, self._error_form(problem, self.request_id), problem.all_headers())
        else:
            await self._write(self._failure(problem), more=False)

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in {**self.headers, **headers}.items()]
        pairs.append((b"x-request-id", self.request_id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _write(self, body: bytes, *, more: bool) -> None:
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        except OSError as error:  # uvicorn raises it when the connection is closed
            raise ClientGone from error


def _no_stream(problem: HttpProblem) -> bytes:
    """Returns nothing: an answer that is no stream has no place for an error once it has begun."""
    return b""


def _too_long(max_bytes: int) -> HttpProblem:
    return HttpProblem(413, f"the body is longer than {max_bytes} bytes", code="request_too_large")
