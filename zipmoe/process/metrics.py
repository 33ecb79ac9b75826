"""The metrics that every process has, and the HTTP port that serves metrics to Prometheus."""

from __future__ import annotations

import errno
import platform
import threading
from wsgiref.simple_server import WSGIServer

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge

import zipmoe
from zipmoe.errors import AlreadyRunning, InvalidRequest
from zipmoe.system_error import reason_of


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
