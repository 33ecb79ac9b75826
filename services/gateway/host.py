"""HTTP server around the application: claims its port and ends in two stages, as the gRPC services do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from zipmoe.errors import InvalidRequest
from zipmoe.rpc.listener import TcpAddress, check_certificate
from zipmoe.services.gateway.connections import ConnectionLimits, ConnectionPlaces, HttpConnection
from zipmoe.system_error import reason_of

_LOG = structlog.get_logger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_BACKLOG = 256
# TCP asks a silent peer for a sign of life. So address translators and firewalls on the way keep the connection of a
# client that waits for a whole answer, and the gateway notices a host that has vanished after 45 s.
_TCP_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpHost:
    """An HTTP server, from binding the port to the last answer.

    Create the host inside the event loop that runs the server.
    """

    def __init__(
        self,
        address: str,
        *,
        certificate: Path | None,
        key: Path | None,
        has_api_key: bool,
        insecure_listen: bool,
        drain_timeout_s: float,
        limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 (frozen)
    ) -> None:
        """Binds the address; no request is answered yet.

        Args:
            address: `host:port`; port 0 takes any free port.
            certificate: PEM certificate chain; None serves plain text.
            key: PEM private key of the certificate.
            has_api_key: whether clients have to show an API key.
            insecure_listen: allows an address that other machines can reach without an API key.
            drain_timeout_s: seconds that running requests get to finish.
            limits: limits of the connections.

        Raises:
            AlreadyRunning: the port is in use.
            InvalidRequest: the address is malformed, cannot be bound, or is open to other machines without a key; or
                the certificate cannot be used.
        """
        tcp = TcpAddress.parse(address)
        if not tcp.is_loopback and not has_api_key and not insecure_listen:
            raise InvalidRequest(
                f"address {tcp} can be reached by other machines, but anybody could use it",
                next_step="give an --api-key-file, listen on 127.0.0.1, or accept it with --insecure-listen",
            )
        if not tcp.is_loopback and certificate is None:
            _LOG.warning("plain_text_on_network", listen=str(tcp), next_step="give --tls-certificate and --tls-key")
        self._certificate, self._key = certificate, key
        self._drain_timeout_s = drain_timeout_s
        self._limits = limits
        if certificate is not None and key is not None:
            check_certificate(certificate, key)
        tcp.probe()
        self._sockets = _bind(tcp)
        self._server: _Server | None = None
        self._is_draining = False

    @property
    def port(self) -> int:
        """The bound port."""
        return int(self._sockets[0].getsockname()[1])

    def close(self) -> None:
        """Closes the listening sockets."""
        for each in self._sockets:
            each.close()

    def drain(self) -> None:
        """Ends `serve` once running requests have finished or `drain_timeout_s` has passed."""
        self._is_draining = True
        if self._server is not None:
            self._server.should_exit = True

    async def serve(self, app: ASGIApp) -> None:
        """Answers requests until `drain` is called."""
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=partial(HttpConnection, ConnectionPlaces(self._limits.most), self._limits.idle_s),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=self._limits.idle_s,  # type: ignore[arg-type]  # as below
            ssl_certfile=self._certificate,
            ssl_keyfile=self._key,
            # uvicorn's type says int, asyncio takes fractions.
            timeout_graceful_shutdown=self._drain_timeout_s,  # type: ignore[arg-type]
        )
        self._server = _Server(config)
        self._server.should_exit = self._is_draining
        await self._server.serve(sockets=self._sockets)

    async def run_until_signal(self, app: ASGIApp, at_once: Callable[[], None]) -> None:
        """Answers until SIGTERM or SIGINT and drains; a second signal calls `at_once` and ends the process."""
        loop = asyncio.get_running_loop()

        def on_signal(number: signal.Signals) -> None:
            if not self._is_draining:
                _LOG.info("draining", signal=number.name, grace_s=self._drain_timeout_s)
                self.drain()
                return
            _LOG.warning("exiting_at_once", signal=number.name)
            try:
                at_once()
            finally:
                os._exit(128 + number)

        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal, number)
        try:
            await self.serve(app)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


def _bind(tcp: TcpAddress) -> list[socket.socket]:
    """Binds sockets on all addresses of a host; port 0 becomes the same free port on each."""
    sockets: list[socket.socket] = []
    port = tcp.port
    try:
        for family, ip in tcp.resolved:
            bound = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for option in _TCP_KEEPALIVE:
                bound.setsockopt(*option)  # accepted sockets inherit it
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound.bind((ip, port))
            bound.listen(_BACKLOG)  # a client that connects before `serve` waits instead of being refused
            port = bound.getsockname()[1]
    except OSError as error:
        for each in sockets:
            each.close()
        reason = reason_of(error)
        raise InvalidRequest(f"cannot listen on {tcp}: {reason}", next_step="choose another --listen") from error
    return sockets
