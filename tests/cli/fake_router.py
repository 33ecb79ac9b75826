"""A router without a model: it answers with the words of a script, over a real socket, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from zipmoe.errors import ZipMoeError
from zipmoe.rpc.testing import served
from zipmoe.v1 import generation_pb2 as pb
from zipmoe.v1 import generation_pb2_grpc

SERVICE = "zipmoe.v1.GenerationService"
USAGE = pb.Usage(
    prompt_tokens=3,
    generated_tokens=2,
    time_to_first_token_s=0.5,
    duration_s=0.75,
    expert_hits=10,
    expert_misses=4,
    expert_bytes_read=2048,
    expert_stall_s=0.125,
)


@dataclass
class FakeRouter(generation_pb2_grpc.GenerationServiceServicer):
    """Answers every request alike, and remembers what it was asked."""

    words: Sequence[str] = ("Hello", " world")
    tokens: Sequence[pb.GeneratedToken] = ()
    """What is sent instead of the words."""
    held_back: str = "!"
    reason: pb.FinishReason = pb.FINISH_REASON_STOP
    last: pb.GenerationFinished | None = None
    """What ends the answer instead of `held_back` and `reason`."""
    prompt_logprobs: Sequence[float] = ()
    refusal: ZipMoeError | None = None
    """Raised before anything."""
    error: ZipMoeError | None = None
    """Raised after the words instead of finishing."""
    hangs: bool = False
    """Does not finish before `release`; or else the client has to go."""
    queues: bool = False
    """Waits between `progress`, which it sends if it is asked to, and `started`, until `admit`."""
    late_refusal: ZipMoeError | None = None
    """Raised after that instead of starting."""
    ends_early: bool = False
    """Ends the stream without `finished`."""
    has_chat_template: bool = True
    conversation_tokens: int = 8
    """What `Tokenize` says of any conversation."""
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    tokenized: list[pb.TokenizeRequest] = field(default_factory=list)
    remaining_s: float | None = None
    """What the latest request's deadline left it; None without one."""
    detokenized: list[tuple[int, ...]] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.remaining_s = context.time_remaining()
        self._loop, self._released = asyncio.get_running_loop(), asyncio.Event()
        self._admitted = asyncio.Event()
        if self.refusal is not None:
            raise self.refusal
        choices = request.sampling.choices or 1
        try:
            if request.output.progress:
                yield pb.GenerateResponse(progress=pb.GenerationProgress(queue_position=17, prompt_tokens=3))
            if self.queues:
                await self._admitted.wait()
            if self.late_refusal is not None:
                raise self.late_refusal
            started = pb.GenerationStarted(
                request_id=request.request_id or "made-up", prompt_tokens=3, prompt_logprobs=self.prompt_logprobs
            )
            if request.output.prompt_tokens:
                started.prompt_token_ids.extend([4, 5, 200])
                started.prompt_text = "<4><5>"
            if request.output.prompt_top_logprobs:
                started.prompt_logprobs[:] = [-1.0, -2.0]
                top = pb.TopLogprobs(entries=[pb.TokenLogprob(token_id=7, logprob=-0.75)])
                started.prompt_top_logprobs.extend([top, top])
            yield pb.GenerateResponse(started=started)
            words = [pb.GeneratedToken(token_id=token_id, text=word) for token_id, word in enumerate(self.words)]
            for token in self.tokens or words:
                if request.output.logprobs:
                    token.logprob = -0.5
                    token.top_logprobs.add(token_id=7, logprob=-0.25)
                for choice in range(choices):
                    yield pb.GenerateResponse(token=token, choice=choice)
            if self.hangs:
                await self._released.wait()
        except (asyncio.CancelledError, GeneratorExit):  # while it waits, or while it writes
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        if not self.ends_early:
            finished = self.last or pb.GenerationFinished(reason=self.reason, text=self.held_back, usage=USAGE)
            for choice in range(choices):
                yield pb.GenerateResponse(finished=finished, choice=choice)

    def release(self) -> None:
        """Has the request that hangs finish."""
        self._loop.call_soon_threadsafe(self._released.set)

    def admit(self) -> None:
        """Has the request that is queued start."""
        self._loop.call_soon_threadsafe(self._admitted.set)

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetModelResponse:
        return pb.GetModelResponse(
            name="fake",
            family="qwen2_moe",
            store_digest="0123456789abcdef",
            context_tokens=64,
            vocabulary_size=256,
            has_chat_template=self.has_chat_template,
            prompt_limit_tokens=48,
        )

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.TokenizeResponse:
        self.tokenized.append(request)
        if self.error is not None:
            raise self.error
        is_text = request.prompt.WhichOneof("form") == "text"
        return pb.TokenizeResponse(token_ids=range(len(request.prompt.text) if is_text else self.conversation_tokens))

    async def Detokenize(  # noqa: N802
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.DetokenizeResponse:
        self.detokenized.append(tuple(request.token_ids))
        if request.as_sequence:
            return pb.DetokenizeResponse(text="".join(f"<{token_id}>" for token_id in request.token_ids))
        texts = {token_id: f"<{token_id}>" for token_id in request.token_ids} | dict.fromkeys(range(128, 256), "\ufffd")
        return pb.DetokenizeResponse(
            tokens=[texts[token_id] for token_id in request.token_ids],
            # From 128 on, ids are bytes that are no whole character.
            token_bytes=[
                bytes([token_id]) if token_id > 127 else texts[token_id].encode() for token_id in request.token_ids
            ],
        )


@contextmanager
def running_router(router: FakeRouter) -> Iterator[str]:
    """Serves the router during the block.

    Yields:
        Its gRPC target.
    """
    loop = asyncio.new_event_loop()
    started, target = threading.Event(), []
    stop = asyncio.Event()

    async def serve() -> None:
        add = generation_pb2_grpc.add_GenerationServiceServicer_to_server
        async with served(lambda server: add(router, server), [SERVICE]) as test:
            target.append(f"unix:{test.path}")
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=run, name="fake-router")
    thread.start()
    try:
        started.wait()
        yield target[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
