"""Names of web origins and hosts, as they stand in settings and in the headers of requests."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

ANY: Final = "*"
"""Stands for all origins or hosts."""

OPAQUE: Final = "null"
"""Origin of pages without an address, such as local files."""

HOST: Final = re.compile(r"([^\s/?#@,:\[\]]+|\[[0-9a-f:.]+\])(?::[0-9]{0,5})?")
"""A host in lower case, alone as the first group, and a port."""

_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://([^\s/?#@,:\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}


def parse_origin(text: str) -> str:
    """Returns an origin as browsers write it; `*` stands for any.

    Raises:
        ValueError: it is no origin.
    """
    lower = text.strip().lower().removesuffix("/")
    if lower in (ANY, OPAQUE):
        return lower
    found = _ORIGIN.fullmatch(lower)
    if found is None:
        raise ValueError(f"{text!r} is no origin such as https://chat.example.com or http://localhost:3000")
    scheme, host, port = found.groups()
    return f"{scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS.get(scheme) else "")


def parse_host(text: str) -> str:
    """Returns a host name or address without brackets; `*` stands for any.

    Raises:
        ValueError: it is no host, or has a port.
    """
    lower = text.strip().lower()
    if lower == ANY:
        return lower
    try:
        return str(ipaddress.ip_address(lower.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    found = HOST.fullmatch(lower)
    if found is None or found[1] != lower:
        raise ValueError(f"{text!r} is no host such as chat.example.com or 192.168.1.5, without a port")
    return lower.removesuffix(".")
