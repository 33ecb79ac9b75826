"""Several answers and several prompts in one request, echoed prompts, and bytes of tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import openai
import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, USER, front, until
from zipmoe.client import Event, Started
from zipmoe.errors import InvalidRequest
from zipmoe.services.gateway.answers.together import MOST_TOGETHER, merged
from zipmoe.v1 import generation_pb2 as pb


async def test_every_choice_of_a_chat_has_its_number_whole_and_streamed() -> None:
    async with front() as gateway:
        client = gateway.openai().chat.completions
        answer = await client.create(model=MODEL, messages=[USER], n=2)
        stream = await client.create(
            model=MODEL, messages=[USER], n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "Hello world!")] * 1 + [
        (1, "Hello world!")
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 4), "the prompt counts once"
    for index in range(2):
        deltas = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(each.delta.content or "" for each in deltas) == "Hello world!"
        assert [each.finish_reason for each in deltas if each.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 4
    assert len(gateway.router.requests) == 2, "the router gets one request for all choices"


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_to_several_prompts_come_in_the_order_of_the_prompts(stream: bool) -> None:
    prompts: Any = [[1, 2], [3]]
    async with front() as gateway:
        client = gateway.openai().completions
        asked = {"model": MODEL, "prompt": prompts, "n": 2, "best_of": 3}
        if stream:
            pieces = await client.create(**asked, stream=True)  # type: ignore[call-overload]
            texts = [""] * 4
            async for piece in pieces:
                for choice in piece.choices:
                    texts[choice.index] += choice.text
        else:
            answer = await client.create(**asked)  # type: ignore[call-overload]
            texts = [choice.text for choice in answer.choices]
            assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
            assert answer.usage.prompt_tokens == 6
    assert texts == ["Hello world!"] * 4
    requests = sorted(gateway.router.requests, key=lambda each: each.request_id)
    assert [list(each.prompt.token_ids.ids) for each in requests] == [[1, 2], [3]]
    assert [(each.sampling.choices, each.sampling.best_of) for each in requests] == [(2, 3)] * 2
    assert len({each.request_id for each in requests}) == 2


class ChoosyRouter(FakeRouter):
    """A router that refuses one prompt, and hangs on the others."""

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        if request.prompt.text == "bad":
            raise InvalidRequest("a bad prompt")
        async for response in super().Generate(request, context):
            yield response


async def test_a_prompt_that_is_refused_ends_the_others() -> None:
    router = ChoosyRouter(hangs=True)
    async with front(router) as gateway:
        with pytest.raises(openai.BadRequestError, match="a bad prompt"):
            await gateway.openai().completions.create(model=MODEL, prompt=["good", "bad"])
        if router.requests:
            await until(router.cancelled.is_set)


async def test_only_so_many_prompts_of_a_request_are_generated_at_a_time() -> None:
    running, most = 0, 0
    released = asyncio.Event()

    async def generation() -> AsyncIterator[Event]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == MOST_TOGETHER:
            released.set()
        await released.wait()
        yield Started("", 1)
        running -= 1

    numbers = [number async for number, _ in merged([generation] * 40)]
    assert sorted(numbers) == list(range(40))
    assert most == MOST_TOGETHER


async def test_an_echoed_prompt_comes_first_with_its_log_probabilities() -> None:
    async with front() as gateway:
        client = gateway.openai().completions
        answer = await client.create(model=MODEL, prompt=[4, 5, 200], echo=True, logprobs=1, max_tokens=1)
        stream = await client.create(model=MODEL, prompt=[4, 5, 200], echo=True, logprobs=1, stream=True)
        pieces = [choice async for chunk in stream for choice in chunk.choices]
        plain = await client.create(model=MODEL, prompt="ab", echo=True)
    (choice,) = answer.choices
    assert choice.text == "<4><5>Hello world!"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["<4>", "<5>", "bytes:\\xc8", "<0>", "<1>"]
    assert logprobs.token_logprobs == [None, -1.0, -2.0, -0.5, -0.5]
    assert logprobs.top_logprobs == [None, {"<7>": -0.75}, {"<7>": -0.75}, {"<7>": -0.25}, {"<7>": -0.25}]
    assert logprobs.text_offset == [0, 3, 6, 7, 10]
    assert "".join(piece.text for piece in pieces) == choice.text
    streamed = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [entry for each in streamed for entry in getattr(each, name)] == getattr(logprobs, name)
    assert (plain.choices[0].text, plain.choices[0].logprobs) == ("<4><5>Hello world!", None)
    first, _, last = gateway.router.requests
    assert (first.output.prompt_top_logprobs, first.output.prompt_tokens) == (1, True)
    assert not last.output.prompt_logprobs


async def test_a_part_of_a_character_is_told_in_bytes() -> None:
    class Halves(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
            async for response in super().Generate(request, context):
                if response.HasField("token"):
                    response.token.token_id += 200
                yield response

    async with front(Halves()) as gateway:
        client = gateway.openai()
        chat = await client.chat.completions.create(model=MODEL, messages=[USER], logprobs=True)
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert [(each.token, each.bytes) for each in logprobs.content] == [("bytes:\\xc8", [200]), ("bytes:\\xc9", [201])]
