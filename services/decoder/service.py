"""gRPC service of the decoder: converts protocol messages for the open session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from zipmoe.arena.description import ArenaDescription
from zipmoe.arena.tensor_form import TensorForm
from zipmoe.errors import ZipMoeError
from zipmoe.internal.v1 import decoder_pb2 as pb
from zipmoe.internal.v1 import decoder_pb2_grpc
from zipmoe.rpc.wire import arena_message, completed_message, opened_message, operations_of
from zipmoe.services.decoder.outbox import Outbox
from zipmoe.services.decoder.single_session import OpenSession, SingleSession


class DecoderService(decoder_pb2_grpc.DecoderServiceServicer):
    """Serves fetches to one router at a time.

    Thread: the event loop's only.
    """

    def __init__(
        self,
        sessions: SingleSession,
        store_digest: str,
        tensor_arena: ArenaDescription | None,
        worker_count: int,
        tensor_form: TensorForm,
    ) -> None:
        self._sessions = sessions
        self._store_digest = store_digest
        self._tensor_arena = None if tensor_arena is None else arena_message(tensor_arena)
        self._worker_count = worker_count
        self._tensor_form = tensor_form

    async def DescribeDecoder(  # noqa: N802 (the protocol's name)
        self, request: pb.DescribeDecoderRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DescribeDecoderResponse:
        """See the protocol."""
        arenas = self._sessions.arenas()
        return pb.DescribeDecoderResponse(
            store_digest=self._store_digest,
            e_arena=arena_message(arenas.e.description),
            sm_arena=arena_message(arenas.sm.description),
            tensor_arena=self._tensor_arena,
            worker_count=self._worker_count,
            tensor_form=self._tensor_form,
        )

    async def FetchExperts(  # noqa: N802 (the protocol's name)
        self, request_iterator: AsyncIterator[pb.FetchExpertsRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """See the protocol."""
        session = await self._sessions.open()
        receiving = asyncio.ensure_future(_receive(session, request_iterator))
        try:
            await context.write(pb.FetchExpertsResponse(opened=opened_message(session.first_generations)))
            error = await _report(session.outbox, context)
            if receiving.done():
                receiving.result()
        finally:
            receiving.cancel()
            await self._sessions.close(session)
        if error is not None:
            raise error


async def _receive(session: OpenSession, requests: AsyncIterator[pb.FetchExpertsRequest]) -> None:
    try:
        async for request in requests:
            operations, refused = operations_of(request.operations)
            for result in refused:
                session.outbox.put(result)
            session.domain.begin(operations)
            if operations.recoveries:
                await asyncio.sleep(0)  # lets the message to the store leave first
                session.domain.recover(operations)
    finally:
        session.outbox.end()


async def _report(outbox: Outbox, context: grpc.aio.ServicerContext[Any, Any]) -> ZipMoeError | None:
    """Sends results until the session ends, all ready results in one message; returns the error of the end."""
    while True:
        results = await outbox.take()
        if results:
            await context.write(pb.FetchExpertsResponse(completed=[completed_message(each) for each in results]))
        if outbox.ended:
            return outbox.error
