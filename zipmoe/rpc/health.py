"""The standard health service (grpc.health.v1), with a status per service and "" for all services together.

grpcio's own servicer needs a coroutine to set a status. This servicer takes a status from any plain callback of the
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.rpc.status import abort

OVERALL = ""


class Health(health_pb2_grpc.HealthServicer):
    """Serving status of each service. Every service begins as NOT_SERVING.

    Thread: the event loop's only.
    """

    def __init__(self, service_names: Iterable[str]) -> None:
        self._serving = dict.fromkeys(service_names, False)
        self._is_shut_down = False
        self._changed = asyncio.Event()

    def set_serving(self, name: str, serving: bool) -> None:
        """Sets the status of a service; has no effect after `shut_down`.

        Raises:
            InvalidRequest: the name was not given to the constructor.
        """
        if name not in self._serving:
            raise InvalidRequest(f"unknown service '{name}', want one of {', '.join(self._serving)}")
        if not self._is_shut_down and self._serving[name] != serving:
            self._serving[name] = serving
            self._notify()

    def shut_down(self) -> None:
        """Sets every service to NOT_SERVING for good, and ends the watchers so that none outlives the server."""
        self._serving = dict.fromkeys(self._serving, False)
        self._is_shut_down = True
        self._notify()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answers with the status of a service."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await abort(context, NotFound(f"unknown service '{request.service}'"))
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Streams the status of a service, at once and after every change."""
        last: int | None = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self._is_shut_down:
                return
            await changed.wait()

    def _status(self, name: str) -> int:
        if name != OVERALL and name not in self._serving:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        is_serving = all(self._serving.values()) if name == OVERALL else self._serving[name]
        # A server without services is never up: no service can report that it serves.
        if is_serving and self._serving and not self._is_shut_down:
            return health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse.NOT_SERVING

    def _notify(self) -> None:
        # Each event is set once: present watchers wait for the old event, later watchers for the new event.
        self._changed.set()
        self._changed = asyncio.Event()
