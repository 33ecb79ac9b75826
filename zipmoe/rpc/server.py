"""gRPC server of every service: grpc.aio with health, reflection, metrics, error mapping and orderly shutdown.

host = ServiceHost("decoder", registry, ["zipmoe.internal.v1.DecoderService"])
add_DecoderServiceServicer_to_server(DecoderService(...), host.server)
host.listen(paths.decoder)
await host.start()
host.set_serving("zipmoe.internal.v1.DecoderService", True)
await host.run_until_signal()
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.rpc.auth import TokenCheck
from zipmoe.rpc.error_mapping import ErrorMapping
from zipmoe.rpc.health import Health
from zipmoe.rpc.listener import TcpAddress, UnixListener
from zipmoe.rpc.metrics import GrpcServerMetrics

MAX_REQUEST_BYTES = 16 << 20
DEFAULT_GRACE_S = 10.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_LOG = structlog.get_logger(__name__)

# A stopped or unreachable peer is noticed after 40 s, a dead process on this machine at once. Clients may ping every
# 10 s, also while they have no call: many keep a connection alive in this way. Faster pings end the connection.
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class ServiceHost:
    """A gRPC server, from the first port to the last RPC.

    Create the host inside the event loop that runs the server.

    Attributes:
        server: takes the servicers.
        draining: set as soon as the shutdown begins; long sessions watch this event and finish.
        exit_stack: closed after the last RPC, and also when a second signal ends the process at once; sockets, brokers
            and ports belong on this stack.
    """

    def __init__(
        self,
        service: str,
        registry: CollectorRegistry,
        service_names: Sequence[str],
        *,
        token: str | None = None,
        grace_s: float = DEFAULT_GRACE_S,
    ) -> None:
        """Builds the server; nothing listens yet.

        Args:
            service: the process's name in logs.
            registry: registry of the `grpc_server_*` metrics.
            service_names: full names of the gRPC services, for health and reflection.
            token: token that TCP clients have to show; None asks for none.
            grace_s: seconds that running RPCs get to finish once the server drains.
        """
        interceptors: list[grpc.aio.ServerInterceptor] = [GrpcServerMetrics(registry), ErrorMapping()]
        if token is not None:
            interceptors.append(TokenCheck(token))
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_REQUEST_BYTES), *_KEEPALIVE)
        self.server = grpc.aio.server(interceptors=interceptors, options=options)
        self.draining = asyncio.Event()
        self.exit_stack = ExitStack()
        self._service = service
        self._has_token = token is not None
        self._grace_s = grace_s
        self._health = Health(service_names)
        self._is_stopped = False
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def listen(
        self,
        address: str | Path,
        credentials: grpc.ServerCredentials | None = None,
        *,
        insecure_listen: bool = False,
    ) -> int:
        """Listens on a UNIX socket (a path, or `unix:path`) or on a TCP address; see `listen_unix` and `listen_tcp`.

        Returns:
            The TCP port, 0 for a UNIX socket.
        """
        if isinstance(address, Path):
            self.listen_unix(address)
        elif address.startswith("unix:"):
            self.listen_unix(Path(address.removeprefix("unix:")))
        else:
            return self.listen_tcp(address, credentials, insecure_listen=insecure_listen)
        return 0

    def listen_unix(self, path: Path) -> None:
        """Listens on a UNIX socket; replaces the socket of a killed predecessor.

        Raises:
            AlreadyRunning: another process serves the path.
            InvalidRequest: the path cannot be bound.
        """
        listener = UnixListener(path)
        self.exit_stack.callback(listener.release)
        try:
            self.server.add_insecure_port(f"unix:{listener.path}")
        except RuntimeError as error:
            raise InvalidRequest(f"cannot listen on {listener.path}") from error
        listener.bound()

    def listen_tcp(self, address: str, credentials: grpc.ServerCredentials | None, *, insecure_listen: bool) -> int:
        """Listens on a TCP address.

        Args:
            address: `host:port`; port 0 takes any free port.
            credentials: TLS, see `tls_credentials`; None is plain text.
            insecure_listen: allows an address that other machines can reach without TLS and a token.

        Returns:
            The port.

        Raises:
            AlreadyRunning: the port is in use.
            InvalidRequest: the address is malformed, cannot be bound, or is open to other machines without TLS and a
                token.
        """
        tcp = TcpAddress.parse(address)
        if not tcp.is_loopback and not insecure_listen and (credentials is None or not self._has_token):
            missing = " and ".join(
                name for name, given in (("TLS", credentials is not None), ("a token", self._has_token)) if not given
            )
            raise InvalidRequest(
                f"address {tcp} can be reached by other machines, but {missing} would be missing",
                next_step="configure TLS and a token, listen on 127.0.0.1, or accept it with --insecure-listen",
            )
        tcp.probe()
        try:
            if credentials is None:
                return self.server.add_insecure_port(str(tcp))
            return self.server.add_secure_port(str(tcp), credentials)
        except RuntimeError as error:  # another process took the port after the probe
            raise AlreadyRunning(f"port {tcp.port} on {tcp.host} is in use") from error

    def set_serving(self, name: str, serving: bool) -> None:
        """Sets whether a service works at the moment; every service begins as not serving. Thread: the event loop."""
        self._health.set_serving(name, serving)

    async def start(self) -> None:
        """Begins to answer RPCs; health reports NOT_SERVING until `set_serving`."""
        await self.server.start()

    async def stop(self) -> None:
        """Drains the server and closes `exit_stack`.

        Health reports NOT_SERVING, new RPCs are refused, and running RPCs get the grace period to finish. A second call
        returns at once.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        self._health.shut_down()
        self.draining.set()
        await self.server.stop(self._grace_s)
        self.exit_stack.close()

    async def run_until_signal(self) -> None:
        """Runs until SIGTERM or SIGINT (or `draining` is set) and drains; a second signal ends the process at once."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self.draining.wait()
            await self.stop()
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.draining.is_set():
            _LOG.info("draining", signal=number.name, grace_s=self._grace_s)
            self.draining.set()
            return
        _LOG.warning("exiting_at_once", signal=number.name)
        try:
            self.exit_stack.close()
        finally:
            # Not sys.exit: native work that cannot be cancelled would keep the interpreter waiting.
            os._exit(128 + number)
