"""Runs an OpenAI request on the router and writes the answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from zipmoe.client import AsyncGenerationClient, Event, Finished, Output, Prompt, Started, Token, complete
from zipmoe.services.gateway.exchange import Exchange
from zipmoe.services.gateway.openai_parameters import Parameters
from zipmoe.services.gateway.shapes import AnswerShape, Texts
from zipmoe.services.gateway.token_texts import TokenTexts

DONE = b"data: [DONE]\n\n"


def to_json(value: Any) -> bytes:
    """Encodes a value as JSON without spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class GenerationCall:
    """A generation that a client asks for, and the shape of its answer."""

    prompt: Prompt
    parameters: Parameters
    output: Output
    shape: AnswerShape


class Answering:
    """Generates on the router, and writes the answer as a whole or as a stream."""

    def __init__(self, client: AsyncGenerationClient, texts: TokenTexts, timeout_s: float | None) -> None:
        self._client = client
        self._texts = texts
        self._timeout_s = timeout_s

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
        generated = self._client.generate(
            call.prompt,
            sampling=call.parameters.sampling,
            stopping=call.parameters.stopping,
            output=call.output,
            constraint=call.parameters.constraint,
            request_id=exchange.request_id,
            timeout_s=self._timeout_s,
        )
        async with aclosing(generated) as events:  # type: ignore[type-var]  # `generate` returns a generator
            watched = _notify_first_token(events, on_token)
            if call.parameters.stream:
                # The first event comes before the status code is written, so that an early error can still set it.
                first = await anext(watched)
                await exchange.stream(self._pieces(first, watched, call))
            else:
                completion = complete([event async for event in watched])
                texts = await self._texts_of(completion.tokens, call.output)
                await exchange.answer(200, to_json(call.shape.whole(completion, texts)), {})

    async def _pieces(self, first: Event, rest: AsyncIterator[Event], call: GenerationCall) -> AsyncIterator[bytes]:
        include_usage = call.parameters.include_usage

        def event(piece: dict[str, Any]) -> bytes:
            # With include_usage, every piece but the last has a usage of null.
            return b"data: " + to_json({**piece, "usage": None} if include_usage else piece) + b"\n\n"

        assert isinstance(first, Started)
        if (opening := call.shape.opening()) is not None:
            yield event(opening)
        async for each in rest:
            if isinstance(each, Token):
                if each.text or call.shape.with_logprobs:
                    texts = await self._texts_of([each], call.output)
                    yield event(call.shape.piece(each.text, each, texts))
            elif isinstance(each, Finished):
                if each.text:
                    yield event(call.shape.piece(each.text, None, {}))
                yield event(call.shape.piece("", None, {}, each.reason.value))
                if include_usage:
                    yield b"data: " + to_json(call.shape.usage_piece(each.usage)) + b"\n\n"
        yield DONE

    async def _texts_of(self, tokens: Sequence[Token], output: Output) -> Texts:
        if not output.logprobs:
            return {}
        ids = {token.token_id for token in tokens}
        ids |= {other.token_id for token in tokens for other in token.top_logprobs}
        return await self._texts.of(ids)


async def _notify_first_token(events: AsyncIterator[Event], on_token: Callable[[], None]) -> AsyncIterator[Event]:
    notified = False
    async for event in events:
        if not notified and isinstance(event, Token):
            notified = True
            on_token()
        yield event
