"""Runs an OpenAI request on the router and writes the answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from zipmoe.client import (
    AsyncGenerationClient,
    Completion,
    Event,
    Finished,
    Prompt,
    PromptProgress,
    Started,
    Token,
    Usage,
    complete_all,
)
from zipmoe.services.gateway.exchange import Exchange
from zipmoe.services.gateway.keep_alive import with_comments
from zipmoe.services.gateway.request_body.generation_body import GenerationBody
from zipmoe.services.gateway.shapes import AnswerShape, Texts, prompt_entries
from zipmoe.services.gateway.together import merged
from zipmoe.services.gateway.token_texts import TokenTexts

DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Encodes a value as JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class GenerationCall:
    """A generation that a client asks for, and the shape of its answer."""

    body: GenerationBody
    shape: AnswerShape


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
                await exchange.stream(with_comments(self._pieces(first, watched, call), self._keep_alive_s))
            else:
                completions = await _complete(watched, len(prompts), call.shape.choices)
                tokens = [token for each in completions for token in (*prompt_entries(each), *each.tokens)]
                texts = await self._texts_of(tokens, call)
                await exchange.answer(200, to_json(call.shape.whole(completions, texts)), {})

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

    async def _pieces(
        self, first: tuple[int, Event], rest: AsyncIterator[tuple[int, Event]], call: GenerationCall
    ) -> AsyncIterator[bytes]:
        include_usage, shape = call.body.include_usage, call.shape
        usages: dict[int, Usage] = {}
        calling: set[int] = set()

        def piece(content: dict[str, Any]) -> bytes:
            # With include_usage, every piece but the last has a usage of null.
            return b"data: " + to_json({**content, "usage": None} if include_usage else content) + b"\n\n"

        async for prompt, event in _chained(first, rest):
            if isinstance(event, PromptProgress):
                continue
            if isinstance(event, Started):
                entries = prompt_entries(event)
                texts = await self._texts_of(entries, call)
                for index in range(prompt * shape.choices, (prompt + 1) * shape.choices):
                    if (opening := shape.opening(index)) is not None:
                        yield piece(opening)
                    if shape.echo:
                        yield piece(shape.piece(index, event.prompt_text, entries, texts))
                continue
            index = prompt * shape.choices + event.choice
            for content in shape.pieces_before(index, event):
                yield piece(content)
            if isinstance(event, Token) and (event.text or shape.with_logprobs):
                texts = await self._texts_of([event], call)
                yield piece(shape.piece(index, event.text, [event], texts))
            elif isinstance(event, Finished) and event.text:
                yield piece(shape.piece(index, event.text, [], {}))
            for content in shape.pieces_after(index, event):
                calling.add(index)
                yield piece(content)
            if isinstance(event, Finished):
                usages[index] = event.usage
                yield piece(shape.piece(index, "", [], {}, shape.end(event.reason, calls_tools=index in calling)))
        if include_usage:
            yield b"data: " + to_json(shape.usage_piece([usages[index] for index in sorted(usages)])) + b"\n\n"
        yield DONE

    async def _texts_of(self, tokens: Iterable[Token], call: GenerationCall) -> Texts:
        if not call.shape.with_logprobs:
            return {}
        shown = list(tokens)
        ids = {token.token_id for token in shown}
        ids |= {other.token_id for token in shown for other in token.top_logprobs}
        return await self._texts.of(ids)


async def _complete(events: AsyncIterator[tuple[int, Event]], prompts: int, choices: int) -> Sequence[Completion]:
    """Collects the answers to all prompts, in the order of the prompts."""
    collected: list[list[Event]] = [[] for _ in range(prompts)]
    async for prompt, event in events:
        collected[prompt].append(event)
    return [answer for each in collected for answer in complete_all(each, choices)]


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
