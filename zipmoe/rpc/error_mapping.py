"""Interceptor that maps every error of a handler to a gRPC status."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog

from zipmoe.errors import InternalError, ZipMoeError
from zipmoe.rpc.interceptor import Around, Call, Context, Interceptor
from zipmoe.rpc.status import INTERNAL_MESSAGE, abort

_LOG = structlog.get_logger(__name__)


class ErrorMapping(Interceptor):
    """Maps an exception of a handler to a gRPC status.

    A ZipMoeError gets the status of its class. Any other exception is a bug: the client receives INTERNAL with a fixed
    text that reveals no details, and the log receives one traceback. Cancellation passes unchanged.
    """

    def around(self, method: str) -> Around:
        """Returns a wrapper that maps the errors of a method."""

        async def around(call: Call, request: Any, context: Context) -> Any:
            try:
                return await call(request, context)
            except grpc.aio.AbortError:
                raise
            except ZipMoeError as error:
                await abort(context, error)
            except Exception:
                _LOG.exception("rpc_failed", method=method)
                await abort(context, InternalError(INTERNAL_MESSAGE))

        return around
