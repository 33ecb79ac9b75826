"""The public generation service: translates between protocol buffers and the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from zipmoe.errors import Unavailable
from zipmoe.rpc.interceptor import Context
from zipmoe.services.router.engine.engine import Engine
from zipmoe.services.router.engine.event_stream import EventStream
from zipmoe.services.router.engine.grammars import Grammars
from zipmoe.services.router.engine.intake import Intake
from zipmoe.services.router.engine.request import (
    EndReason,
    Request,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    RequestToken,
)
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

_REASONS = {EndReason.STOP: pb.FINISH_REASON_STOP, EndReason.LENGTH: pb.FINISH_REASON_LENGTH}


@dataclass(frozen=True)
class Backend:
    """The parts that answer RPCs: engine, intake, description of the model, thread for tokenizing, grammars."""

    engine: Engine
    intake: Intake
    model: pb.GetModelResponse
    tokenizing: Executor
    grammars: Grammars


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Serves `zipmoe.v1.GenerationService`; errors become gRPC statuses in the host's interceptor."""

    def __init__(self) -> None:
        self._opened: Backend | None = None

    def open(self, backend: Backend) -> None:
        """Begins to answer; before this call, every RPC is refused as UNAVAILABLE."""
        self._opened = backend

    @property
    def _backend(self) -> Backend:
        if self._opened is None:
            raise Unavailable("the router is loading the model")
        return self._opened

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Streams one generation.

        When the client goes away, the request ends before its next step. While the client reads too slowly, the request
        pauses.
        """
        backend, loop = self._backend, asyncio.get_running_loop()
        spec = await loop.run_in_executor(backend.tokenizing, backend.intake.spec, request)
        source = await loop.run_in_executor(backend.tokenizing, backend.intake.grammar_source, request)
        if source is not None:
            spec = replace(spec, grammar=await backend.grammars.grammar(source))
        events = EventStream(loop, backend.engine.wake)
        remaining_s = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        running = Request(spec, events.emit, events.unread, deadline_s)
        backend.engine.submit(running)
        try:
            while True:
                event = await events.next()
                if isinstance(event, RequestFailed):
                    raise event.error
                yield _response(spec.request_id, event)
                if isinstance(event, RequestFinished):
                    return
        finally:
            backend.engine.cancel(running)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """Describes the model."""
        return self._backend.model

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """Tokenizes a prompt as Generate would."""
        backend, loop = self._backend, asyncio.get_running_loop()
        ids = await loop.run_in_executor(backend.tokenizing, backend.intake.token_ids, request.prompt)
        return pb.TokenizeResponse(token_ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Returns the text of each token."""
        backend, loop = self._backend, asyncio.get_running_loop()
        texts = await loop.run_in_executor(backend.tokenizing, backend.intake.token_texts, request.token_ids)
        return pb.DetokenizeResponse(tokens=texts)


def _response(request_id: str, event: RequestStarted | RequestToken | RequestFinished) -> pb.GenerateResponse:
    if isinstance(event, RequestToken):
        choice = event.choice
        token = pb.GeneratedToken(token_id=choice.token_id, text=event.text, logprob=choice.logprob)
        token.top_logprobs.extend(
            pb.TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in choice.top_logprobs
        )
        return pb.GenerateResponse(token=token)
    if isinstance(event, RequestStarted):
        started = pb.GenerationStarted(
            request_id=request_id, prompt_tokens=event.prompt_tokens, prompt_logprobs=event.prompt_logprobs
        )
        return pb.GenerateResponse(started=started)
    usage = pb.Usage(
        prompt_tokens=event.prompt_tokens,
        generated_tokens=event.generated_tokens,
        time_to_first_token_s=event.time_to_first_token_s,
        duration_s=event.duration_s,
        expert_hits=event.experts.hits,
        expert_misses=event.experts.misses,
        expert_bytes_read=event.experts.bytes_read,
        expert_stall_s=event.experts.stall_s,
        reused_tokens=event.reused_tokens,
        approximate_tokens=event.approximate_tokens,
        drafted_tokens=event.drafted_tokens,
        accepted_tokens=event.accepted_tokens,
    )
    return pb.GenerateResponse(
        finished=pb.GenerationFinished(reason=_REASONS[event.reason], text=event.text, usage=usage)
    )
