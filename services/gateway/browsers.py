"""Which web pages may use the gateway: named origins (CORS), and hosts that no foreign name server can claim.

A page of any web site can have its browser send requests to this machine. The browser names the page's origin. If the
page's name server answers with this machine's address (DNS rebinding), the browser takes page and gateway for one
origin, but the request carries the page's host.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers

from zipmoe.process.web_names import ANY, HOST, parse_host, parse_origin
from zipmoe.services.gateway.http_problem import HttpProblem

_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]+")
_WILDCARD_ADDRESSES: Final = ("0.0.0.0", "::")

_METHODS: Final = "GET, HEAD, POST"
_USUAL_HEADERS: Final = "authorization, content-type, x-api-key"
_EXPOSED: Final = "x-request-id, retry-after, retry-after-ms"
_PREFLIGHT_S: Final = 600
_SHOWN: Final = 200
"""Characters of a client's header that an error repeats."""


class BrowserRules:
    """Decides by a request's headers whether a page may send it, and which headers let the page read the answer."""

    def __init__(self, origins: Iterable[str], hosts: Iterable[str], *, listen: str, has_api_key: bool) -> None:
        """Makes the rules.

        Args:
            origins: allowed origins, as `parse_origin` returns them.
            hosts: allowed hosts, as `parse_host` returns them.
            listen: the address that the gateway listens on, `host:port`. Its host is allowed too, unless it stands for
                all addresses.
            has_api_key: whether clients have to show a key, which pages that claim a host do not have.
        """
        self._origins = frozenset(origins)
        own = parse_host(listen.rpartition(":")[0] or ANY)
        self._hosts = {*hosts, *(() if own in (ANY, *_WILDCARD_ADDRESSES) else (own,))}
        self._any_host = has_api_key or ANY in self._hosts

    def answer_headers(self, headers: Headers) -> dict[str, str]:
        """Returns the headers that every answer to a request carries, so that pages of allowed origins can read it."""
        if not self._origins:
            return {}
        found = {} if ANY in self._origins else {"vary": "origin"}
        origin = _only(headers, "origin")
        if origin is not None and self._allows(origin):
            found["access-control-allow-origin"] = ANY if ANY in self._origins else origin
            found["access-control-expose-headers"] = _EXPOSED
        return found

    def check(self, headers: Headers, path: str) -> None:
        """Refuses requests of foreign pages.

        Raises:
            HttpProblem: the host is not allowed, or the origin is neither allowed nor the gateway's own.
        """
        host = _only(headers, "host") or ""
        if not (self._any_host or path.startswith("/health") or self._knows(host)):
            raise HttpProblem(
                403,
                f"host {host[:_SHOWN]!r} is not allowed; the gateway's --allow-host names hosts besides localhost",
                code="host_not_allowed",
            )
        if "origin" not in headers:
            return
        origin = _only(headers, "origin") or ""
        is_own = bool(host) and origin.lower().partition("://")[2] == host.lower()
        if not (is_own or self._allows(origin)):
            raise HttpProblem(
                403,
                f"pages of origin {origin[:_SHOWN]!r} are not allowed; the gateway's --allow-origin names allowed ones",
                code="origin_not_allowed",
            )

    def preflight(self, headers: Headers) -> dict[str, str]:
        """Returns further headers of the answer to a preflight request, in which a browser asks for permission."""
        wanted = headers.get("access-control-request-headers", "")
        return {
            "access-control-allow-methods": _METHODS,
            # Clients send headers of their own (x-stainless-...), so what is asked for is granted.
            "access-control-allow-headers": wanted if _HEADER_NAMES.fullmatch(wanted) else _USUAL_HEADERS,
            "access-control-max-age": str(_PREFLIGHT_S),
            "vary": "origin, access-control-request-headers",
        }

    def _allows(self, origin: str) -> bool:
        if ANY in self._origins:
            return True
        try:
            return parse_origin(origin) in self._origins
        except ValueError:
            return False

    def _knows(self, host: str) -> bool:
        found = HOST.fullmatch(host.lower())
        if found is None:
            return False
        name = found[1].removeprefix("[").removesuffix("]").removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return address.is_loopback or str(address) in self._hosts


def is_preflight(method: str, headers: Headers) -> bool:
    """Tells whether a browser asks for permission before it sends a request of a page."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def _only(headers: Headers, name: str) -> str | None:
    """Returns the value of a header that is given once, else None."""
    values = headers.getlist(name)
    return values[0] if len(values) == 1 else None
