"""Runs a request on the router and has its answer written, in any dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from zipmoe.client import (
    AsyncGenerationClient,
    Event,
    Prompt,
    Started,
    Token,
)
from zipmoe.services.gateway.answers.answer_writer import AnswerWriter, Texts
from zipmoe.services.gateway.answers.keep_alive import with_comments
from zipmoe.services.gateway.answers.shapes import prompt_entries
from zipmoe.services.gateway.answers.together import merged
from zipmoe.services.gateway.answers.token_texts import TokenTexts
from zipmoe.services.gateway.exchange import Exchange
from zipmoe.services.gateway.request_body.generation_body import GenerationBody


@dataclass(frozen=True)
class GenerationCall:
    """A generation that a client asks for, and the writer of its answer."""

    body: GenerationBody
    writer: AnswerWriter


class Answering:
    """Generates on the router, and writes the answer as a whole or as a stream."""

    def __init__(
        self, client: AsyncGenerationClient, texts: TokenTexts, timeout_s: float | None, keep_alive_s: float
    ) -> None:
        """Prepares answers.

        Args:
            client: client of the router.
            texts: texts of token ids.
            timeout_s: deadline of a whole answer; None without one.
            keep_alive_s: seconds without a byte after which a stream gets a comment.
        """
        self._client = client
        self._texts = texts
        self._timeout_s = timeout_s
        self._keep_alive_s = keep_alive_s

    async def run(self, exchange: Exchange, call: GenerationCall, on_token: Callable[[], None]) -> None:
        """Answers a request; cancelling this call cancels the request on the router.

        Args:
            exchange: the HTTP request to answer.
            call: the generation to run.
            on_token: callback, called when the first token arrives.

        Raises:
            ZipMoeError: the router refuses or fails; at this point either nothing has been written, or a stream has
                begun.
        """
        prompts = call.body.prompts
        ids = [exchange.request_id]
        if len(prompts) > 1:
            ids = [f"{exchange.request_id}-{number}" for number in range(len(prompts))]
        begins = [partial(self._begin, call.body, *each) for each in zip(prompts, ids, strict=True)]
        async with aclosing(merged(begins)) as events:
            watched = _notify_first_token(events, on_token)
            if call.body.stream:
                # The router's first event says that the request is in the queue. Its refusals come before that, and
                # therefore before the status code is written. Later errors are events of the stream.
                first = await anext(watched)
                frames = self._frames(first, watched, call.writer)
                comments = with_comments(frames, self._keep_alive_s, call.writer.keep_alive)
                await exchange.stream(comments, call.writer.failure)
            else:
                answers = await _collected(watched, len(prompts))
                texts = await self._texts_of([event for each in answers for event in each], call.writer)
                await exchange.answer(200, call.writer.whole(answers, texts))

    def _begin(self, body: GenerationBody, prompt: Prompt, request_id: str) -> AsyncIterator[Event]:
        return self._client.generate(
            prompt,
            sampling=body.sampling,
            stopping=body.stopping,
            output=replace(body.output, progress=bool(body.stream)),
            constraint=body.constraint,
            request_id=request_id,
            timeout_s=self._timeout_s,
        )

    async def _frames(
        self, first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]], writer: AnswerWriter
    ) -> AsyncIterator[bytes]:
        async for prompt, event in _chained(first, rest):
            texts = await self._texts_of([event], writer)
            for frame in writer.frames(prompt, event, texts):
                yield frame
        for frame in writer.end():
            yield frame

    async def _texts_of(self, events: Iterable[Event], writer: AnswerWriter) -> Texts:
        if not writer.with_logprobs:
            return {}
        shown = [token for event in events for token in _tokens_of(event)]
        ids = {token.token_id for token in shown}
        ids |= {other.token_id for token in shown for other in token.top_logprobs}
        return await self._texts.of(ids)


def _tokens_of(event: Event) -> Sequence[Token]:
    if isinstance(event, Started):
        return prompt_entries(event)
    return [event] if isinstance(event, Token) else []


async def _collected(events: AsyncIterator[tuple[int, Event]], prompts: int) -> list[list[Event]]:
    """Collects the events of all prompts, in the order of the prompts."""
    collected: list[list[Event]] = [[] for _ in range(prompts)]
    async for prompt, event in events:
        collected[prompt].append(event)
    return collected


async def _chained(
    first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]]
) -> AsyncIterator[tuple[int, Event]]:
    yield first
    async for event in rest:
        yield event


async def _notify_first_token(
    events: AsyncIterator[tuple[int, Event]], on_token: Callable[[], None]
) -> AsyncIterator[tuple[int, Event]]:
    notified = False
    async for number, event in events:
        if not notified and isinstance(event, Token):
            notified = True
            on_token()
        yield number, event
