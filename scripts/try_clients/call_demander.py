"""Forwards requests to the gateway, and demands a call in those that offer tools and bring no result yet."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Final
from urllib.parse import urlsplit

_DROPPED: Final = frozenset({"host", "content-length", "connection", "transfer-encoding", "accept-encoding"})


class DemandingHandler(BaseHTTPRequestHandler):
    """Forwards one request, and the answer as it comes."""

    def __init__(self, url: str, *arguments: object) -> None:
        self._gateway = urlsplit(url).netloc
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Writes no log."""

    def do_GET(self) -> None:
        """Forwards as it is."""
        self._forward(None)

    def do_POST(self) -> None:
        """Forwards with a call demanded."""
        self._forward(demanding(self.rfile.read(int(self.headers["content-length"]))))

    def _forward(self, body: bytes | None) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _DROPPED}
        with (
            closing(http.client.HTTPConnection(self._gateway, timeout=300)) as connection,
            suppress(ConnectionError),  # the client has gone: so goes the connection to the gateway
        ):
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _DROPPED:
                    self.send_header(name, value)
            self.end_headers()  # HTTP/1.0: the end of the connection ends the answer
            while some := answer.read1():
                self.wfile.write(some)


def demanding(body: bytes) -> bytes:
    """Returns the body of a chat with `tool_choice: required`, if it offers tools and its last message is no result.

    Tools then take no properties but those that their schemas name: a small model would not stop making up others.
    """
    fields = json.loads(body)
    messages = fields.get("messages")
    if fields.get("tools") and messages and messages[-1].get("role") != "tool":
        fields["tool_choice"] = "required"
        fields["parallel_tool_calls"] = False
        for tool in fields["tools"]:
            tool["function"].get("parameters", {})["additionalProperties"] = False
    return json.dumps(fields).encode()


@contextmanager
def demanding_calls(url: str) -> Iterator[str]:
    """Forwards during the block, and yields the base URL of the forwarder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(DemandingHandler, url))
    thread = Thread(target=server.serve_forever, name="call-demander", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{urlsplit(url).path}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
