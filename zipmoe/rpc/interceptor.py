"""Base of server interceptors: runs code around every kind of RPC handler."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
# Takes a request (or the iterator of requests) and the context; returns the response, or None after streaming them.
Call: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Around: TypeAlias = Callable[[Call, Any, Context], Awaitable[Any]]


class Interceptor(grpc.aio.ServerInterceptor):
    """A server interceptor that runs a coroutine around each RPC, unary or streaming.

    The subclass sees every handler as a coroutine function, whether the handler streams through a generator or through
    `context.write`. A generator is closed as soon as the RPC ends, so its `finally` does not wait for the garbage
    collector.

    Handlers that are not asyncio code are left unchanged; ZipMoE has none.
    """

    def __init__(self) -> None:
        # By method: handler and wrapped handler. Wrapping anew for every RPC would cost a tenth of a unary call.
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    @abstractmethod
    def around(self, method: str) -> Around:
        """Returns the coroutine function to run around each RPC of a method; called once per method.

        Args:
            method: name on the wire, `/package.Service/Method`.
        """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Returns the wrapped handler of one RPC."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        method = handler_call_details.method
        known, wrapped = self._wrapped.get(method, (None, None))
        if wrapped is None or known is not handler:
            wrapped = _wrap(handler, self.around(method))
            self._wrapped[method] = (handler, wrapped)
        return wrapped


def _wrap(handler: Handler, around: Around) -> Handler:
    behaviour, factory = _parts(handler)
    if inspect.isasyncgenfunction(behaviour):
        call = _streaming(behaviour)
    elif inspect.iscoroutinefunction(behaviour):
        call = behaviour
    else:
        return handler

    async def wrapped(request: Any, context: Context) -> Any:
        return await around(call, request, context)

    return factory(
        wrapped,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _streaming(generate: Callable[[Any, Context], Any]) -> Call:
    async def call(request: Any, context: Context) -> None:
        async with aclosing(generate(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return call


def _parts(handler: Handler) -> tuple[Any, Callable[..., Handler]]:
    if handler.request_streaming:
        if handler.response_streaming:
            return handler.stream_stream, grpc.stream_stream_rpc_method_handler
        return handler.stream_unary, grpc.stream_unary_rpc_method_handler
    if handler.response_streaming:
        return handler.unary_stream, grpc.unary_stream_rpc_method_handler
    return handler.unary_unary, grpc.unary_unary_rpc_method_handler
