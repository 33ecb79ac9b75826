"""The interceptor through which every error leaves a server: ours with its status, anybody else's as a fixed text."""

from __future__ import annotations

from typing import Any

import grpc.aio
import structlog

from zipmoe.errors import InternalError, ZipMoeError
from zipmoe.rpc.interceptor import Around, Call, Context, Interceptor
from zipmoe.rpc.status import INTERNAL_MESSAGE, abort

_LOG = structlog.get_logger(__name__)


class ErrorMapping(Interceptor):
    """Maps what a handler raises to a status.

    A ZipMoeError gets the status of its class. Anything else is a bug: the client gets INTERNAL with a fixed text that
    gives nothing away, the log gets one traceback. Cancellation passes.
    """

    def around(self, method: str) -> Around:
        """Returns the mapping of a method's errors."""

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
