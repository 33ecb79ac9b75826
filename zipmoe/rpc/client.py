"""Channels to ZipMoE's services, and a wait until a service is serving."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.errors import InvalidRequest, Unavailable
from zipmoe.rpc.status import to_error

MAX_RESPONSE_BYTES = 64 << 20

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted service on this machine is back within a second, while gRPC backs off for up to two minutes. The
    # minimum backoff keeps its default: it is also the time that one attempt to connect may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each channel has connections of its own, so that closing a channel ends its sessions.
    ("grpc.use_local_subchannel_pool", 1),
    # The services are on this machine or named by the user: a web proxy never applies.
    ("grpc.enable_http_proxy", 0),
)
# A server that refuses at once must not be asked in a tight loop.
_RETRY_PAUSE_S = 0.05


def target_of(address: str | Path) -> str:
    """Returns gRPC's form of an address: a path becomes `unix:/path`, `host:port` and `unix:...` stay."""
    return f"unix:{address.absolute()}" if isinstance(address, Path) else address


def channel(
    address: str | Path, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
) -> grpc.Channel:
    """Opens a synchronous channel; it connects on first use.

    Args:
        address: a socket's path, `unix:path` or `host:port`.
        credentials: TLS (`grpc.ssl_channel_credentials`); None is plain text.
        token: bearer token for every call; over TLS only.

    Raises:
        InvalidRequest: a token is given without TLS.
    """
    secured = _with_token(credentials, token)
    if secured is None:
        return grpc.insecure_channel(target_of(address), options=_OPTIONS)
    return grpc.secure_channel(target_of(address), secured, options=_OPTIONS)


def aio_channel(
    address: str | Path, *, credentials: grpc.ChannelCredentials | None = None, token: str | None = None
) -> grpc.aio.Channel:
    """Opens a channel for asyncio, inside the event loop that uses the channel; see `channel`."""
    secured = _with_token(credentials, token)
    if secured is None:
        return grpc.aio.insecure_channel(target_of(address), options=_OPTIONS)
    return grpc.aio.secure_channel(target_of(address), secured, options=_OPTIONS)


def wait_until_serving(address: str | Path, service: str, timeout_s: float) -> None:
    """Waits until a service reports that it is serving; the process need not exist yet.

    Args:
        address: see `channel`.
        service: full gRPC service name; "" for all services of the server.
        timeout_s: longest wait, in seconds.

    Raises:
        Unavailable: the service does not serve in time; the message has the last status.
        InvalidRequest: the server has no health service.
    """
    deadline_s = time.monotonic() + timeout_s
    seen = "nobody answers"
    request = health_pb2.HealthCheckRequest(service=service)
    with channel(address) as opened:
        stub: Any = health_pb2_grpc.HealthStub(opened)
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            watch = stub.Watch(request, timeout=remaining_s, wait_for_ready=True)
            try:
                for response in watch:
                    if response.status == health_pb2.HealthCheckResponse.SERVING:
                        watch.cancel()
                        return
                    name = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
                    seen = f"it says {name.lower().replace('_', ' ')}"
            except grpc.RpcError as failure:
                if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise to_error(failure) from failure
            threading.Event().wait(min(_RETRY_PAUSE_S, max(0.0, deadline_s - time.monotonic())))
    name = service or "the server"
    raise Unavailable(f"{name} at {target_of(address)} does not serve after {timeout_s:g} s: {seen}")


def _with_token(credentials: grpc.ChannelCredentials | None, token: str | None) -> grpc.ChannelCredentials | None:
    if token is None:
        return credentials
    if credentials is None:
        raise InvalidRequest("a token would be sent in plain text", next_step="use TLS, or the UNIX socket")
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
