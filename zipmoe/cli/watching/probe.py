"""Asks a server once for its health: gRPC services by the health protocol, the gateway over HTTP."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.process.runtime import SocketPaths
from zipmoe.rpc.client import channel

SERVING = "SERVING"
UNREACHABLE = "UNREACHABLE"


@dataclass(frozen=True)
class Endpoint:
    """A gRPC target, with the name of a service in the health protocol ("" for the whole server)."""

    name: str
    target: str
    health_name: str = ""


def local_endpoints(sockets: SocketPaths) -> dict[str, Endpoint]:
    """Returns the endpoints of the three services of a runtime directory, by name in starting order."""
    return {
        "expert-store": Endpoint(
            "expert-store", f"unix:{sockets.expert_store}", "zipmoe.internal.v1.ExpertStoreService"
        ),
        "decoder": Endpoint("decoder", f"unix:{sockets.decoder}", "zipmoe.internal.v1.DecoderService"),
        "router": Endpoint("router", f"unix:{sockets.router}", "zipmoe.v1.GenerationService"),
    }


def health_of(endpoint: Endpoint, timeout_s: float, tls_ca: Path | None = None) -> str:
    """Asks a gRPC server once for its health.

    Args:
        endpoint: the server to ask.
        timeout_s: longest wait for the answer.
        tls_ca: PEM file of the authority of the server's certificate; None for plain text.

    Returns:
        `SERVING`, `NOT_SERVING`, another status of the health protocol, or `UNREACHABLE`.
    """
    credentials = None if tls_ca is None else grpc.ssl_channel_credentials(tls_ca.read_bytes())
    with channel(endpoint.target, credentials=credentials) as connection:
        try:
            stub: Any = health_pb2_grpc.HealthStub(connection)
            response = stub.Check(health_pb2.HealthCheckRequest(service=endpoint.health_name), timeout=timeout_s)
        except grpc.RpcError as error:
            return "SERVICE_UNKNOWN" if error.code() is grpc.StatusCode.NOT_FOUND else UNREACHABLE
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def url_health_of(url: str, timeout_s: float, tls_ca: Path | None = None) -> str:
    """Asks a gateway once for its health, at `URL/healthz`.

    Args:
        url: `http://HOST:PORT` or `https://HOST:PORT`.
        timeout_s: longest wait for the answer.
        tls_ca: PEM file of the authority of the server's certificate; None for the authorities of the system.

    Returns:
        `SERVING`; `NOT_SERVING` if the gateway answers with an error status, as without a serving router; or
        `UNREACHABLE`.
    """
    context = None if tls_ca is None else ssl.create_default_context(cafile=tls_ca)
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(f"{url.rstrip('/')}/healthz", timeout=timeout_s):
            return SERVING
    except urllib.error.HTTPError as error:
        error.close()
        return "NOT_SERVING"
    except (OSError, ValueError):
        return UNREACHABLE
