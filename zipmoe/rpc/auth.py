"""Bearer tokens: checked on every call over TCP, if the server has a token."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Any, cast

from zipmoe.errors import Unauthenticated
from zipmoe.rpc.interceptor import Around, Call, Context, Interceptor

_KEY = "authorization"
_SCHEME = "Bearer "
# Load balancers and container runtimes probe without credentials; health tells them no more than "up" or "down".
_OPEN_METHODS = "/grpc.health.v1.Health/"


def bearer_metadata(token: str) -> tuple[tuple[str, str], ...]:
    """Returns the call metadata that carries a client's token."""
    return ((_KEY, _SCHEME + token),)


class TokenCheck(Interceptor):
    """Refuses calls without the right token.

    UNIX sockets are exempt, since file permissions guard them. Loopback is not exempt, since proxies and port
    forwarding make remote clients look like loopback.
    """

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = (_SCHEME + token).encode()

    def around(self, method: str) -> Around:
        """Returns the token check for the calls of a method."""
        is_open = method.startswith(_OPEN_METHODS)

        async def around(call: Call, request: Any, context: Context) -> Any:
            if not is_open and not context.peer().startswith("unix:"):
                self._check(context)
            return await call(request, context)

        return around

    def _check(self, context: Context) -> None:
        metadata = cast("Iterable[tuple[str, str | bytes]]", context.invocation_metadata() or ())
        shown = [_as_bytes(value) for key, value in metadata if key == _KEY]
        if not shown:
            raise Unauthenticated("this address needs a token")
        if len(shown) > 1 or not hmac.compare_digest(shown[0], self._expected):
            raise Unauthenticated("wrong token")


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
