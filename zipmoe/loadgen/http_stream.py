"""Sends one HTTP/1.1 request and streams the lines of the answer. h11 does the protocol, asyncio the socket."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from zipmoe.errors import DeadlineExceeded, InvalidRequest, Unavailable
from zipmoe.system_error import reason_of

if TYPE_CHECKING:
    import h11

_READ_BYTES = 64 << 10


@dataclass(frozen=True)
class HttpAddress:
    """Address of an HTTP server.

    Attributes:
        host: name or IP address.
        port: TCP port.
        path: path before `/v1/...`, without a slash at the end.
        tls: TLS settings; None for plain text.
        api_key: key that requests carry; None for none.
    """

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    api_key: str | None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None, tls_ca: str | None = None) -> HttpAddress:
        """Parses a URL, with or without `/v1` at the end.

        Raises:
            InvalidRequest: the text is no HTTP or HTTPS URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidRequest(f"{url!r} is no URL") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequest(f"{url!r} is not http://HOST:PORT or https://HOST:PORT")
        tls = ssl.create_default_context(cafile=tls_ca) if parts.scheme == "https" else None
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), path, tls, api_key)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


@asynccontextmanager
async def open_stream(
    address: HttpAddress, path: str, body: Mapping[str, Any] | None, timeout_s: float | None
) -> AsyncIterator[tuple[int, AsyncIterator[str]]]:
    """Sends a request: POST with a JSON body, or GET without one.

    Args:
        address: address of the server.
        path: path after the path of the address.
        body: JSON body of a POST; None for a GET.
        timeout_s: limit for the whole answer; None for no limit.

    Yields:
        The status code, and the lines of the answer.

    Raises:
        Unavailable: the server cannot be reached or breaks off.
        DeadlineExceeded: the answer takes too long.
        InvalidRequest: h11 is not installed.
    """
    try:
        import h11
    except ImportError as error:
        raise InvalidRequest(
            "HTTP needs h11, which is not installed", next_step="pip install 'zipmoe[gateway]'"
        ) from error
    loop = asyncio.get_running_loop()
    deadline_s = None if timeout_s is None else loop.time() + timeout_s

    async def in_time(work: Any) -> Any:
        try:
            return await asyncio.wait_for(work, None if deadline_s is None else deadline_s - loop.time())
        except TimeoutError as error:
            raise DeadlineExceeded(f"{address} has not answered within {timeout_s} s") from error
        except OSError as error:
            raise Unavailable(f"{address} does not answer: {reason_of(error)}") from error

    reader, writer = await in_time(asyncio.open_connection(address.host, address.port, ssl=address.tls))
    try:
        connection = h11.Connection(h11.CLIENT)
        writer.write(_request(connection, address, path, body))
        await in_time(writer.drain())

        async def events() -> AsyncIterator[h11.Event]:
            try:
                while True:
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        connection.receive_data(await in_time(reader.read(_READ_BYTES)))
                    elif isinstance(event, h11.EndOfMessage):
                        return
                    elif not isinstance(event, type):
                        yield event
            except h11.RemoteProtocolError as error:
                raise Unavailable(f"{address} has broken off its answer") from error

        async with aclosing(events()) as pieces:  # type: ignore[type-var]  # it is a generator
            response = await anext(pieces, None)
            if not isinstance(response, h11.Response):
                raise Unavailable(f"{address} does not answer in HTTP")
            yield response.status_code, _lines(pieces)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _request(connection: h11.Connection, address: HttpAddress, path: str, body: Mapping[str, Any] | None) -> bytes:
    import h11

    host = f"[{address.host}]" if ":" in address.host else address.host
    headers = [("host", f"{host}:{address.port}"), ("accept", "*/*")]
    if address.api_key is not None:
        headers.append(("authorization", f"Bearer {address.api_key}"))
    data = b"" if body is None else json.dumps(body).encode()
    if body is not None:
        headers += [("content-type", "application/json"), ("content-length", str(len(data)))]
    method = "GET" if body is None else "POST"
    request = connection.send(h11.Request(method=method, target=address.path + path, headers=headers)) or b""
    data = connection.send(h11.Data(data=data)) or b"" if body is not None else b""
    return request + data + (connection.send(h11.EndOfMessage()) or b"")


async def _lines(events: AsyncIterator[h11.Event]) -> AsyncIterator[str]:
    import h11

    pending = b""
    async for event in events:
        if isinstance(event, h11.Data):
            *lines, pending = (pending + bytes(event.data)).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace").rstrip("\r")
    if pending:
        yield pending.decode(errors="replace")
