"""The metrics that every service has, and the HTTP port that serves metrics to Prometheus."""

from __future__ import annotations

import asyncio
import errno
import platform
import threading
import time
from collections.abc import Callable
from typing import Any, cast
from wsgiref.simple_server import WSGIServer

import grpc
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

import zipmoe
from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.rpc.interceptor import Around, Call, Context, Interceptor
from zipmoe.system_error import reason_of

_LABELS = ("grpc_service", "grpc_method")
# From a resident answer (under a millisecond) to a long generation; long sessions are in the last bucket.
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def service_registry(service: str) -> CollectorRegistry:
    """Returns a registry with the series of every process: `process_*`, `python_*` and `zipmoe_build_info`.

    Args:
        service: `expert-store`, `decoder`, `router` or `gateway`.
    """
    registry = CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    build_info(registry, service)
    return registry


def build_info(registry: CollectorRegistry, service: str) -> None:
    """Adds `zipmoe_build_info`: always 1, with service, version and Python version as labels."""
    gauge = Gauge("zipmoe_build_info", "What runs.", ("service", "version", "python"), registry=registry)
    gauge.labels(service, zipmoe.__version__, platform.python_version()).set(1)


class MetricsServer:
    """An HTTP server that shows a registry to Prometheus."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        """Use `start_metrics_server`."""
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The bound port, also if port 0 was asked for."""
        return self._server.server_port

    def stop(self) -> None:
        """Closes the port and waits for its thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(port: int, registry: CollectorRegistry, *, address: str = "127.0.0.1") -> MetricsServer:
    """Serves a registry at http://address:port/metrics, from a separate thread.

    Args:
        port: port to listen on; 0 takes any free port.
        registry: registry to serve.
        address: address of the interface to listen on.

    Raises:
        AlreadyRunning: the port is in use.
        InvalidRequest: the address is not this machine's, or the port needs privileges.
    """
    try:
        server, thread = prometheus_client.start_http_server(port, address, registry)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(
                f"metrics port {port} on {address} is in use", next_step="choose another --metrics-port"
            ) from error
        reason = reason_of(error)
        raise InvalidRequest(
            f"cannot show metrics on {address} port {port}: {reason.lower()}",
            next_step="correct --metrics-address or --metrics-port",
        ) from error
    return MetricsServer(server, thread)


class GrpcServerMetrics(Interceptor):
    """Counts RPCs, their outcomes, durations and messages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._started = Counter("grpc_server_started", "RPCs that began.", _LABELS, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "RPCs that ended, by status code.", (*_LABELS, "grpc_code"), registry=registry
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Seconds from the begin of an RPC to its end.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS_BUCKETS,
        )
        self._received = Counter("grpc_server_msg_received", "Messages from clients.", _LABELS, registry=registry)
        self._sent = Counter("grpc_server_msg_sent", "Messages to clients.", _LABELS, registry=registry)

    def around(self, method: str) -> Around:
        """Returns a wrapper that counts the RPCs of a method."""
        labels = tuple(method.lstrip("/").rpartition("/")[::2])
        count_started = self._started.labels(*labels).inc
        observe_s = self._seconds.labels(*labels).observe
        count_received = self._received.labels(*labels).inc
        count_sent = self._sent.labels(*labels).inc

        async def around(call: Call, request: Any, context: Context) -> Any:
            count_started()
            begin_s = time.perf_counter()
            code = grpc.StatusCode.UNKNOWN
            try:
                if hasattr(request, "__aiter__"):
                    request = _CountedRequests(request, count_received)
                else:
                    count_received()
                counted = _CountedContext(context, count_received, count_sent)
                response = await call(request, cast("Context", counted))
                if response is not None:
                    count_sent()
                code = context.code() or grpc.StatusCode.OK
                return response
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED  # an expired deadline looks the same here
                raise
            except BaseException:
                code = context.code() or grpc.StatusCode.UNKNOWN
                raise
            finally:
                self._handled.labels(*labels, getattr(code, "name", str(code))).inc()
                observe_s(time.perf_counter() - begin_s)

        return around


class _CountedRequests:
    """The request stream of an RPC; counts the messages that are read."""

    def __init__(self, requests: Any, count: Callable[[], None]) -> None:
        self._requests = requests
        self._count = count

    def __aiter__(self) -> _CountedRequests:
        # Not in the constructor: gRPC complains about an iterator that is made and never used.
        self._requests = self._requests.__aiter__()
        return self

    async def __anext__(self) -> Any:
        message = await self._requests.__anext__()
        self._count()
        return message


class _CountedContext:
    """The context of an RPC; counts the messages that are read and written."""

    def __init__(self, context: Context, count_received: Callable[[], None], count_sent: Callable[[], None]) -> None:
        self._context = context
        self._count_received = count_received
        self._count_sent = count_sent

    async def read(self) -> Any:
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._count_received()
        return message

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._count_sent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
