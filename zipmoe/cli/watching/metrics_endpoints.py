"""Addresses of the services' metrics, in a file that `up` and `demo` keep in the runtime directory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zipmoe.errors import InvalidRequest

#: Default addresses of the services' metrics.
DEFAULT_ENDPOINTS: Final = {
    "expert-store": "127.0.0.1:9101",
    "decoder": "127.0.0.1:9102",
    "router": "127.0.0.1:9103",
}
_FILE_NAME: Final = "metrics.json"
#: Addresses that stand for all interfaces, and the loopback address that replaces each on this machine.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@contextmanager
def noted_endpoints(runtime: Path, address: str, ports: Mapping[str, int]) -> Iterator[None]:
    """Keeps the addresses of the services' metrics in a file during the block.

    Args:
        runtime: the runtime directory.
        address: address of the interface that the services use for metrics.
        ports: ports of the metrics by service name.
    """
    path = runtime / _FILE_NAME
    host = _LOOPBACK.get(address, address)
    endpoints = {name: f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for name, port in ports.items()}
    path.write_text(json.dumps(endpoints) + "\n")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def metrics_endpoints(runtime: Path) -> dict[str, str]:
    """Returns HOST:PORT of each service's metrics, from the file in the runtime directory, else the defaults."""
    try:
        noted = json.loads((runtime / _FILE_NAME).read_text())
    except (OSError, ValueError):
        return dict(DEFAULT_ENDPOINTS)
    return {str(name): str(endpoint) for name, endpoint in noted.items()}


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Splits HOST:PORT into host and port.

    Raises:
        InvalidRequest: the text is not HOST:PORT.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidRequest(f"{endpoint!r} is not HOST:PORT of a service's metrics")
    return host, int(port)
