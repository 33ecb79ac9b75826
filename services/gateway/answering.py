"""From a request in OpenAI's terms to the router and back."""

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
    """Writes JSON as compactly as streams want it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


@dataclass(frozen=True)
class GenerationCall:
    """One generation that a client asks for."""

    prompt: Prompt
    parameters: Parameters
    output: Output
    shape: AnswerShape


class Answering:
    """Has the router generate, and writes the answer as a whole or as a stream."""

    def __init__(self, client: AsyncGenerationClient, texts: TokenTexts, timeout_s: float | None) -> None:
        self._client = client
        self._texts = texts
        self._timeout_s = timeout_s

    async def run(self, exchange: Exchange, asked: GenerationCall, on_token: Callable[[], None]) -> None:
        """Answers; cancelling it cancels the request on the router.

        Args:
            exchange: where the answer goes.
            asked: what the client wants.
            on_token: called with the first token.

        Raises:
            ZipMoeError: the router refuses or fails; nothing has been written, or a stream has begun.
        """
        generated = self._client.generate(
            asked.prompt,
            sampling=asked.parameters.sampling,
            stopping=asked.parameters.stopping,
            output=asked.output,
            request_id=exchange.request_id,
            timeout_s=self._timeout_s,
        )
        async with aclosing(generated) as events:  # type: ignore[type-var]  # it is a generator
            watched = _told_of_first(events, on_token)
            if asked.parameters.stream:
                # The status code has to be known before the first byte: an error that comes first can still be one.
                first = await anext(watched)
                await exchange.stream(self._pieces(first, watched, asked))
            else:
                completion = complete([event async for event in watched])
                texts = await self._texts_of(completion.tokens, asked.output)
                await exchange.answer(200, to_json(asked.shape.whole(completion, texts)), {})

    async def _pieces(self, first: Event, rest: AsyncIterator[Event], asked: GenerationCall) -> AsyncIterator[bytes]:
        include_usage = asked.parameters.include_usage

        def event(piece: dict[str, Any]) -> bytes:
            # Every piece but the last has it as null then.
            return b"data: " + to_json({**piece, "usage": None} if include_usage else piece) + b"\n\n"

        assert isinstance(first, Started)
        if (opening := asked.shape.opening()) is not None:
            yield event(opening)
        async for each in rest:
            if isinstance(each, Token):
                if each.text or asked.shape.with_logprobs:
                    texts = await self._texts_of([each], asked.output)
                    yield event(asked.shape.piece(each.text, each, texts))
            elif isinstance(each, Finished):
                if each.text:
                    yield event(asked.shape.piece(each.text, None, {}))
                yield event(asked.shape.piece("", None, {}, each.reason.value))
                if include_usage:
                    yield b"data: " + to_json(asked.shape.usage_piece(each.usage)) + b"\n\n"
        yield DONE

    async def _texts_of(self, tokens: Sequence[Token], output: Output) -> Texts:
        if not output.logprobs:
            return {}
        ids = {token.token_id for token in tokens}
        ids |= {other.token_id for token in tokens for other in token.top_logprobs}
        return await self._texts.of(ids)


async def _told_of_first(events: AsyncIterator[Event], on_token: Callable[[], None]) -> AsyncIterator[Event]:
    told = False
    async for event in events:
        if not told and isinstance(event, Token):
            told = True
            on_token()
        yield event
