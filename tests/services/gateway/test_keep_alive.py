"""A byte always comes: headers as soon as a request is queued, then comments, and errors that clients can read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, USER, front, until
from zipmoe.errors import CorruptData, InvalidRequest, NotFound, ResourceExhausted, Unavailable, ZipMoeError
from zipmoe.process.config import parse_config
from zipmoe.services.gateway.answers.keep_alive import COMMENT, with_comments
from zipmoe.services.gateway.config import GatewayConfig

CHAT = "/v1/chat/completions"
STREAMED = {"model": MODEL, "messages": [USER], "stream": True}


async def test_a_queued_stream_has_headers_and_then_comments_until_it_starts() -> None:
    router = FakeRouter(queues=True)
    async with (
        front(router, keep_alive_s=0.01) as gateway,
        gateway.http() as http,
        http.stream("POST", CHAT, json=STREAMED) as answer,  # the headers come although nothing has started
    ):
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        router.admit()
        rest = [line async for line in lines if line.startswith("data: ")]
    assert json.loads(rest[0].removeprefix("data: "))["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert rest[-1] == "data: [DONE]"


async def test_a_stream_that_is_silent_between_tokens_has_comments_too() -> None:
    router = FakeRouter(hangs=True)
    async with (
        front(router, keep_alive_s=0.01) as gateway,
        gateway.http() as http,
        http.stream("POST", CHAT, json=STREAMED) as answer,
    ):
        lines = answer.aiter_lines()
        while "world" not in await anext(lines):
            pass
        while await anext(lines) != ": keep-alive":
            pass
        router.release()
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]


async def test_openais_client_skips_comments() -> None:
    router = FakeRouter(queues=True)
    async with front(router, keep_alive_s=0.01) as gateway:
        stream = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
        router.admit()
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
    assert text == "Hello world!"


@pytest.mark.parametrize(
    ("refusal", "status"), [(InvalidRequest("no"), 400), (NotFound("no"), 404), (ResourceExhausted("no"), 429)]
)
async def test_what_the_router_does_not_queue_has_a_status(refusal: ZipMoeError, status: int) -> None:
    async with front(FakeRouter(refusal=refusal)) as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json=STREAMED)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("error", [CorruptData("bad chunk"), Unavailable("gone")])
async def test_an_error_after_the_headers_reaches_openais_client(error: ZipMoeError) -> None:
    async with front(FakeRouter(late_refusal=error)) as gateway:
        stream = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], stream=True)
        with pytest.raises(openai.APIError, match=error.message) as caught:
            await anext(aiter(stream))
        async with gateway.http() as http:
            whole = await http.post(CHAT, json={**STREAMED, "stream": False})
    assert caught.value.type == "server_error"
    assert whole.status_code >= 500, "a whole answer has not begun, so that its status tells"


async def test_a_client_that_leaves_the_queue_leaves_the_router_too() -> None:
    router = FakeRouter(queues=True)
    async with front(router, keep_alive_s=0.01) as gateway:
        async with gateway.http() as http, http.stream("POST", CHAT, json=STREAMED) as answer:
            await anext(answer.aiter_lines())
        await until(router.cancelled.is_set)
        await until(lambda: gateway.metric("zipmoe_gateway_requests_open") == 0)


async def test_a_whole_answer_has_no_byte_before_its_end() -> None:
    router = FakeRouter(queues=True)
    async with front(router, keep_alive_s=0.01) as gateway, gateway.http() as http:
        asking = asyncio.ensure_future(http.post(CHAT, json={**STREAMED, "stream": False}))
        await until(lambda: len(router.requests) == 1)
        assert not router.requests[0].output.progress
        router.admit()
        answer: httpx2.Response = await asking
    assert answer.content.startswith(b"{")


async def test_comments_end_with_the_events_and_an_error_passes() -> None:
    goes_on = asyncio.Event()

    async def events() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await goes_on.wait()
        yield b"data: 2\n\n"
        raise CorruptData("bad chunk")

    seen: list[bytes] = []

    async def read() -> None:
        async for each in with_comments(events(), 0.001):
            seen.append(each)
            if seen.count(COMMENT) == 3:
                goes_on.set()

    with pytest.raises(CorruptData, match="bad chunk"):
        await read()
    assert seen[0] == b"data: 1\n\n" and seen[-1] == b"data: 2\n\n"
    assert set(seen[1:-1]) == {COMMENT}


def test_a_comment_is_due_after_ten_seconds() -> None:
    assert parse_config(GatewayConfig, []).keep_alive_s == 10
    with pytest.raises(InvalidRequest, match="--keep-alive-s"):
        parse_config(GatewayConfig, ["--keep-alive-s=0"])
