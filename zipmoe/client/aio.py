"""The client for asyncio: the same calls as `GenerationClient`, awaited."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import grpc

from zipmoe.client.blocking import QUICK_TIMEOUT_S
from zipmoe.client.connection import connection_to
from zipmoe.client.event import Event, Finished, TokenText
from zipmoe.client.model import Model
from zipmoe.client.parameters import Constraint, Output, Prompt, Sampling, Stopping
from zipmoe.client.wire import detokenize_request, event_of, generate_request, model_of, prompt_message
from zipmoe.errors import Unavailable
from zipmoe.rpc.status import to_error
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

if TYPE_CHECKING:
    from typing import Self


class AsyncGenerationClient:
    """Client of a router over a single channel; an asynchronous context manager that closes the channel.

    Arguments, results and errors are those of `GenerationClient`. A client belongs to the event loop in which it was
    made.
    """

    def __init__(
        self, target: str | None = None, *, token: str | None = None, tls_ca: str | os.PathLike[str] | None = None
    ) -> None:
        self._connection = connection_to(target, token, tls_ca)
        self._channel = self._connection.open_async()
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)

    @property
    def target(self) -> str:
        """The gRPC target that this client talks to."""
        return self._connection.target

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; streams that still run are cancelled."""
        await self._channel.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
        stopping: Stopping = Stopping(),  # noqa: B008 (frozen)
        output: Output = Output(),  # noqa: B008 (frozen)
        forced_token_ids: Sequence[int] = (),
        constraint: Constraint | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Event]:
        """Generates, and yields each event when it arrives; cancelling the task cancels the request on the router.

        Close an iterator that is left early (`await iterator.aclose()`), so that its request is cancelled at once.
        """
        request = generate_request(prompt, sampling, stopping, output, forced_token_ids, request_id, constraint)
        return self._stream(request, timeout_s)

    async def _stream(self, request: pb.GenerateRequest, timeout_s: float | None) -> AsyncIterator[Event]:
        call = self._stub.Generate(request, timeout=timeout_s, metadata=self._connection.metadata)
        left = request.sampling.choices or 1
        try:
            async for response in call:  # to the end of the stream, or the router counts the call as cancelled
                event = event_of(response)
                left -= isinstance(event, Finished)
                yield event
        except grpc.RpcError as error:
            if left:
                raise to_error(error) from error
        finally:
            call.cancel()
        if left:
            raise Unavailable("the stream ended without saying that the answer is complete")

    async def model(self, *, timeout_s: float = QUICK_TIMEOUT_S) -> Model:
        """Returns the description of the served model."""
        try:
            request = pb.GetModelRequest()
            return model_of(await self._stub.GetModel(request, timeout=timeout_s, metadata=self._connection.metadata))
        except grpc.RpcError as error:
            raise to_error(error) from error

    async def tokenize(
        self, prompt: Prompt, *, add_special_tokens: bool = True, timeout_s: float = QUICK_TIMEOUT_S
    ) -> list[int]:
        """Turns a prompt into the token ids that `generate` would see."""
        request = pb.TokenizeRequest(prompt=prompt_message(prompt))
        if not add_special_tokens:
            request.add_special_tokens = False
        try:
            response = await self._stub.Tokenize(request, timeout=timeout_s, metadata=self._connection.metadata)
        except grpc.RpcError as error:
            raise to_error(error) from error
        return list(response.token_ids)

    async def token_texts(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> list[TokenText]:
        """Returns the text and the bytes of each token alone; the text of a special token is its name."""
        request = detokenize_request(token_ids)
        told = await self._detokenized(request, timeout_s)
        return list(map(TokenText, told.tokens, told.token_bytes))

    async def detokenize(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> list[str]:
        """Returns the text of each token alone; the text of a special token is its name."""
        return list((await self._detokenized(detokenize_request(token_ids), timeout_s)).tokens)

    async def sequence_text(self, token_ids: Sequence[int], *, timeout_s: float = QUICK_TIMEOUT_S) -> str:
        """Returns the text of token ids as one sequence, with special tokens by their names."""
        request = detokenize_request(token_ids, as_sequence=True)
        return (await self._detokenized(request, timeout_s)).text

    async def _detokenized(self, request: pb.DetokenizeRequest, timeout_s: float) -> pb.DetokenizeResponse:
        try:
            response: pb.DetokenizeResponse = await self._stub.Detokenize(
                request, timeout=timeout_s, metadata=self._connection.metadata
            )
        except grpc.RpcError as error:
            raise to_error(error) from error
        return response
