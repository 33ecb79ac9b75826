"""Metrics of the calls of a gRPC server: counts, outcomes, durations and messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from zipmoe.rpc.interceptor import Around, Call, Context, Interceptor

_LABELS = ("grpc_service", "grpc_method")
# From a resident answer (under a millisecond) to a long generation; long sessions are in the last bucket.
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


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
