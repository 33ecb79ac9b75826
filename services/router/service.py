"""The public generation service: translates between protocol buffers and the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from zipmoe.errors import Unavailable
from zipmoe.model.text.grammar_source import GrammarSource
from zipmoe.model.text.tool_grammar import tool_calls
from zipmoe.rpc.interceptor import Context
from zipmoe.services.router.choices import ChoiceEvent, Choices
from zipmoe.services.router.engine.answer_reader import AnswerReader
from zipmoe.services.router.engine.engine import Engine
from zipmoe.services.router.engine.event_stream import EventStream
from zipmoe.services.router.engine.grammars import Grammars
from zipmoe.services.router.engine.intake import Intake
from zipmoe.services.router.engine.request import (
    EndReason,
    GenerationSpec,
    Request,
    RequestFailed,
    RequestFinished,
    RequestProgress,
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
        source = await self._grammar_source(request, spec)
        if source is not None:
            spec = replace(spec, grammar=await backend.grammars.grammar(source))
        events = EventStream(loop, backend.engine.wake)
        answers = [AnswerReader(spec, number) for number in range(spec.choices)]
        remaining_s = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        requests = [
            Request(
                spec.of_choice(number),
                partial(events.emit, choice=number),
                events.unread,
                deadline_s,
                request.output.progress and not number,
            )
            for number in range(spec.best_of)
        ]
        requests[0].followers = requests[1:]
        backend.engine.submit(requests[0])
        try:
            choices = Choices(spec)
            while not choices.complete:
                number, event = await events.next()
                if isinstance(event, RequestFailed):
                    raise event.error
                for each in choices.take(number, event):
                    if isinstance(event, RequestStarted) and event.scores is not None:
                        response = await loop.run_in_executor(backend.tokenizing, _response, spec, each)
                    else:
                        response = _response(spec, each)
                    yield answers[each.choice].read(response)
        finally:
            for each_request in requests:
                backend.engine.cancel(each_request)

    async def _grammar_source(self, request: pb.GenerateRequest, spec: GenerationSpec) -> GrammarSource | None:
        """Returns the grammar of the answer, to be compiled; None for any answer."""
        backend, loop = self._backend, asyncio.get_running_loop()
        if spec.demanded_calls is None:
            return await loop.run_in_executor(backend.tokenizing, backend.intake.grammar_source, request)
        known = (await backend.grammars.vocabulary()).special_tokens
        return await loop.run_in_executor(backend.tokenizing, tool_calls, spec.demanded_calls, known)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """Describes the model."""
        return self._backend.model

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:  # noqa: N802
        """Tokenizes a prompt as Generate would, or a text without special tokens."""
        backend, loop = self._backend, asyncio.get_running_loop()
        special = not request.HasField("add_special_tokens") or request.add_special_tokens
        tokenize = partial(backend.intake.token_ids, request.prompt, add_special_tokens=special)
        ids = await loop.run_in_executor(backend.tokenizing, tokenize)
        return pb.TokenizeResponse(token_ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Returns the text of each token, or of all as one sequence."""
        backend, loop = self._backend, asyncio.get_running_loop()
        if request.as_sequence:
            text = await loop.run_in_executor(backend.tokenizing, backend.intake.sequence_text, request.token_ids)
            return pb.DetokenizeResponse(text=text)
        texts = await loop.run_in_executor(backend.tokenizing, backend.intake.token_texts, request.token_ids)
        return pb.DetokenizeResponse(tokens=[text for text, _ in texts], token_bytes=[nbytes for _, nbytes in texts])


def _response(spec: GenerationSpec, each: ChoiceEvent) -> pb.GenerateResponse:
    event = each.event
    if isinstance(event, RequestToken):
        choice = event.choice
        token = pb.GeneratedToken(token_id=choice.token_id, text=event.text)
        if spec.reports_logprobs and choice.logprob is not None:
            token.logprob = choice.logprob
            token.top_logprobs.extend(_logprobs(choice.top_logprobs))
        return pb.GenerateResponse(token=token, choice=each.choice)
    if isinstance(event, RequestProgress):
        progress = pb.GenerationProgress(
            queue_position=event.queue_position,
            prompt_tokens_done=event.prompt_tokens_done,
            prompt_tokens=event.prompt_tokens,
        )
        return pb.GenerateResponse(progress=progress)
    if isinstance(event, RequestStarted):
        started = pb.GenerationStarted(request_id=spec.request_id, prompt_tokens=event.prompt_tokens)
        if event.scores is not None:
            started.prompt_logprobs.extend(event.scores.logprobs)
            started.prompt_top_logprobs.extend(pb.TopLogprobs(entries=_logprobs(top)) for top in event.scores.top)
        if spec.prompt_text is not None:
            started.prompt_token_ids.extend(spec.prompt_ids)
            started.prompt_text = spec.prompt_text
        return pb.GenerateResponse(started=started)
    assert isinstance(event, RequestFinished)
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
        discarded_tokens=each.discarded_tokens,
    )
    finished = pb.GenerationFinished(
        reason=_REASONS[event.reason], text=event.text, usage=usage, stop_string=event.stop_string
    )
    return pb.GenerateResponse(finished=finished, choice=each.choice)


def _logprobs(entries: Iterable[tuple[int, float]]) -> list[pb.TokenLogprob]:
    return [pb.TokenLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in entries]
