"""Where the metrics of the services of a runtime directory are: whoever starts them notes it in a file there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zipmoe.errors import InvalidRequest

#: Where services show their metrics if nobody says otherwise.
DEFAULT_ENDPOINTS: Final = {
    "expert-store": "127.0.0.1:9101",
    "decoder": "127.0.0.1:9102",
    "router": "127.0.0.1:9103",
}
_FILE_NAME: Final = "metrics.json"
#: Addresses of all interfaces, and how this machine reaches itself by them.
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@contextmanager
def noted_endpoints(runtime: Path, address: str, ports: Mapping[str, int]) -> Iterator[None]:
    """Notes during the block where each service shows its metrics.

    Args:
        runtime: the runtime directory.
        address: of the interface that the services were told to use.
        ports: by service name.
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
    """HOST:PORT of each service's metrics: what is noted in the runtime directory, else the services' default ports."""
    try:
        noted = json.loads((runtime / _FILE_NAME).read_text())
    except (OSError, ValueError):
        return dict(DEFAULT_ENDPOINTS)
    return {str(name): str(endpoint) for name, endpoint in noted.items()}


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Splits HOST:PORT.

    Raises:
        InvalidRequest: it is not that.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidRequest(f"{endpoint!r} is not HOST:PORT of a service's metrics")
    return host, int(port)
