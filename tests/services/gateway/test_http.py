"""What holds below OpenAI's terms: limits, clients that go away, metrics, ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.running import MODEL, USER, front, until
from zipmoe.v1 import generation_pb2 as pb

CHAT = "/v1/chat/completions"
PLAIN = {"model": MODEL, "prompt": "Hi"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request_on_the_router(stream: bool) -> None:
    router = FakeRouter(hangs=True)
    async with front(router) as gateway:
        async with gateway.http() as http:
            body = {"model": MODEL, "messages": [USER], "stream": stream}
            if stream:
                async with http.stream("POST", CHAT, json=body) as answer:
                    lines = answer.aiter_lines()
                    while "world" not in await anext(lines):
                        pass
                    assert gateway.metric("zipmoe_gateway_streams_open") == 1
            else:
                asking = asyncio.ensure_future(http.post(CHAT, json=body))
                await until(lambda: len(router.requests) == 1)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
        await until(router.cancelled.is_set)
        await until(lambda: gateway.metric("zipmoe_gateway_requests_total", route=CHAT, status="499") == 1)
        assert gateway.metric("zipmoe_gateway_streams_open") == 0
        assert gateway.metric("zipmoe_gateway_requests_open") == 0


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": "Hi"}, "model", "missing parameter"),
        ({"model": MODEL}, "prompt", "missing parameter"),
        ({**PLAIN, "n": 0}, "n", "n is 0, but has to be in [1, 128]"),
        ({**PLAIN, "n": 129}, "n", "n is 129, but has to be in [1, 128]"),
        ({**PLAIN, "n": True}, "n", "n is true, but has to be a whole number"),
        ({**PLAIN, "n": 1.5}, "n", "n is 1.5, but has to be a whole number"),
        ({**PLAIN, "n": 3, "best_of": 2}, "best_of", "best_of is 2, but has to be at least n, 3"),
        ({**PLAIN, "echo": "yes"}, "echo", 'echo is "yes", but has to be true or false'),
        ({**PLAIN, "suffix": "x"}, "suffix", 'not supported but as ""'),
        ({**PLAIN, "logit_bias": {"5": 101}}, "logit_bias.5", "logit_bias.5 is 101, but has to be in [-100, 100]"),
        ({**PLAIN, "logit_bias": {"x": 1}}, "logit_bias", "keys have to be token ids"),
        ({**PLAIN, "presence_penalty": 2.5}, "presence_penalty", "presence_penalty is 2.5, but has to be in [-2, 2]"),
        ({**PLAIN, "temperature": -1}, "temperature", "temperature is -1, but has to be finite and at least 0"),
        ({**PLAIN, "temperature": 10**400}, "temperature", "has to be finite and at least 0"),
        ({**PLAIN, "n": 10**400}, "n", "has to be in [1, 128]"),
        ({**PLAIN, "echo": "\ud800"}, "echo", "has to be true or false"),
        ({**PLAIN, "\ud800": 1}, "?", "unknown parameter: ?"),
        ({**PLAIN, "top_p": 0}, "top_p", "top_p is 0, but has to be in (0, 1]"),
        ({**PLAIN, "top_k": -2}, "top_k", "top_k is -2, but has to be at least -1"),
        ({**PLAIN, "logprobs": 21}, "logprobs", "logprobs is 21, but has to be in [0, 20]"),
        ({**PLAIN, "max_tokens": -2}, "max_tokens", "max_tokens is -2, but has to be at least -1"),
        ({**PLAIN, "max_tokens": "9"}, "max_tokens", 'max_tokens is "9", but has to be a whole number'),
        ({**PLAIN, "max_tokens": 4, "min_tokens": 5}, "min_tokens", "has to be at most max_tokens, 4"),
        ({**PLAIN, "temperature": "hot"}, "temperature", "has to be a number"),
        ({**PLAIN, "stop": ["x"] * 17}, "stop", "at most 16"),
        ({**PLAIN, "mirostat": 2}, "mirostat", "not supported but as 0"),
        ({**PLAIN, "typical_p": 0.5}, "typical_p", "not supported but as 1"),
        ({**PLAIN, "user": "x", "unheard_of": 1}, "unheard_of", "unknown parameter: unheard_of"),
        ({**PLAIN, "stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({**PLAIN, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown parameter"),
        ({**PLAIN, "temprature": 0}, "temprature", "unknown parameter"),
        ({"model": MODEL, "prompt": ["a", 5]}, "prompt.1", "prompt.1 is 5, but has to be a text"),
        ({"model": MODEL, "prompt": ["a"] * 65, "n": 2}, "prompt", "65 x 2 answers, but at most 128"),
        ({"model": MODEL, "prompt": []}, "prompt", "is empty"),
        ({"model": MODEL, "prompt": ["a", ""]}, "prompt", "is empty"),
        ({"model": MODEL, "prompt": {"text": "Hi"}}, "prompt", "has to be a text"),
        ({"model": MODEL, "prompt": ""}, "prompt", "is empty"),
        ({"model": MODEL, "prompt": [-1]}, "prompt.0", "prompt.0 is -1, but has to be a token id"),
        ({"model": MODEL, "prompt": "ab\ud83d"}, "prompt", "half a surrogate pair, U+D83D, at character 2"),
    ],
)
async def test_what_is_not_understood_is_refused_and_named(
    body: dict[str, Any], param: str | None, message: str
) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/v1/completions", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]
    assert not gateway.router.requests


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "tool"}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages.0.content"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages.0.role"),
        ({"messages": ["Hi"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"messages": [{**USER, "tool_calls": [{"function": {"name": "f"}}]}]}, "messages.0.tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt": "Hi"}, "prompt"),
    ],
)
async def test_what_a_chat_cannot_do_is_refused_and_named(more: dict[str, Any], param: str) -> None:
    async with front() as gateway, gateway.http() as http:
        body = json.dumps({"model": MODEL, "messages": [USER], **more})
        answer = await http.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400
    assert str(answer.json()["error"]["param"]).startswith(param)
    assert not gateway.router.requests


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
async def test_a_part_that_is_no_text_is_refused_with_the_reason(kind: str) -> None:
    content = [{"type": "text", "text": "Look:"}, {"type": kind, kind: {"url": "data:,"}}]
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages.0.content.1" and error["code"] == "unsupported_value"
    assert f'parts of type "{kind}"; only text is served' in error["message"]


async def test_values_that_change_nothing_are_accepted() -> None:
    neutral = {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "modalities": ["text"], "stream": None, "stop": None,
        "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
        "reasoning_effort": "none", "chat_template": None, "chat_template_kwargs": {},
    }  # fmt: skip
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": [USER], **neutral})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'"x"',
        b"null",
        b'{"model": "fake", "prompt": "\\ud800"}',
        b'{"model": "fake", "prompt": "Hi", "temperature": NaN}',
        b'{"model": "fake", "prompt": "Hi", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_a_body_of_another_type_is_refused() -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/v1/completions", content=json.dumps(PLAIN), headers={"content-type": "text/plain"})
    assert answer.status_code == 415


async def test_a_body_that_is_too_long_is_refused_whether_it_says_so_or_not() -> None:
    async def pieces() -> Any:
        for _ in range(40):
            yield b" " * 100

    async with front(max_request_bytes=2000) as gateway, gateway.http() as http:
        told = await http.post("/v1/completions", json={**PLAIN, "user": "x" * 2000})
        untold = await http.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    assert (told.status_code, untold.status_code) == (413, 413)
    assert told.json()["error"]["code"] == "request_too_large"


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with front(body_timeout_s=0.05) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.host.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
            b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
        writer.close()
        await writer.wait_closed()


async def test_the_time_of_a_request_is_its_deadline_at_the_router() -> None:
    router = FakeRouter(hangs=True)
    async with front(router, request_timeout_s=0.5) as gateway, gateway.http() as http:
        late = await http.post("/v1/completions", json=PLAIN)
        assert router.remaining_s is not None
        assert 0 < router.remaining_s < 0.51, "gRPC rounds a deadline up"
        assert (late.status_code, late.json()["error"]["type"]) == (504, "server_error")
        await until(router.cancelled.is_set)


async def test_one_request_too_many_is_refused_and_the_next_is_not() -> None:
    router = FakeRouter(hangs=True)
    async with front(router, max_open_requests=1) as gateway, gateway.http() as http:
        async with http.stream("POST", CHAT, json={"model": MODEL, "messages": [USER], "stream": True}) as first:
            assert first.status_code == 200
            refused = await http.post("/v1/completions", json=PLAIN)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert (await http.get("/healthz")).status_code == 200, "health takes no place"
        router.hangs = False
        await until(lambda: gateway.metric("zipmoe_gateway_requests_open") == 0)
        assert (await http.post("/v1/completions", json=PLAIN)).status_code == 200


class SlowModelRouter(FakeRouter):
    """A router that never answers the first question about its model."""

    model_calls = 0

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.GetModelResponse:
        self.model_calls += 1
        if self.model_calls == 1:
            await asyncio.Event().wait()
        return await super().GetModel(request, context)


@pytest.mark.parametrize("path", ["/health", "/healthz", "/v1/models"])
async def test_an_open_request_of_an_uncounted_route_takes_no_place(path: str) -> None:
    router = SlowModelRouter()
    async with front(router, max_open_requests=1) as gateway, gateway.http() as http:
        uncounted = asyncio.ensure_future(http.get(path))
        await until(lambda: router.model_calls == 1)
        assert (await http.post("/v1/completions", json=PLAIN)).status_code == 200
        uncounted.cancel()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/", 404)],
)
async def test_a_wrong_path_or_method_is_told_in_json(method: str, path: str, status: int) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_health_needs_no_key_and_is_that_of_the_router() -> None:
    async with front(api_key="s3cret") as gateway, gateway.http() as http:
        for path in ("/health", "/healthz"):
            assert (await http.get(path)).json() == {"status": "ok", "model": MODEL}
        assert (await http.get("/v1/nothing")).status_code == 401, "not even the paths are told"
    async with front(target="unix:/nonexistent") as gateway, gateway.http() as http:
        assert (await http.get("/healthz")).status_code == 503
        assert (await http.head("/health")).status_code == 503


@pytest.mark.parametrize("path", ["/health", "/healthz", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/x", "/no"])
async def test_head_has_the_status_and_the_headers_of_get_and_no_body(path: str) -> None:
    async with front() as gateway, gateway.http() as http:
        head, whole = await http.head(path), await http.get(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")
    own = ("date", "x-request-id")
    assert [each for each in head.headers.items() if each[0] not in own] == [
        each for each in whole.headers.items() if each[0] not in own
    ]


async def test_head_of_a_generation_is_refused() -> None:
    async with front() as gateway, gateway.http() as http:
        generation, models = await http.head(CHAT), await http.delete("/v1/models")
    assert (generation.status_code, generation.headers["allow"]) == (405, "POST")
    assert (models.status_code, models.headers["allow"]) == (405, "GET, HEAD")


async def test_a_stream_is_what_the_standard_says() -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/v1/completions", json={**PLAIN, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == gateway.router.requests[0].request_id
    events = answer.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert (events[-2], events[-1]) == ("data: [DONE]", "")


async def test_requests_are_counted_by_route_and_status() -> None:
    async with front() as gateway, gateway.http() as http:
        await http.post("/v1/completions", json=PLAIN)
        await http.post("/v1/completions", json={})
        await http.get("/secret/path")
        await until(lambda: gateway.metric("zipmoe_gateway_requests_total", route="other", status="404") == 1)
        route = "/v1/completions"
        assert gateway.metric("zipmoe_gateway_requests_total", route=route, status="200") == 1
        assert gateway.metric("zipmoe_gateway_requests_total", route=route, status="400") == 1
        assert gateway.metric("zipmoe_gateway_request_seconds_count", route=route) == 2
        assert gateway.metric("zipmoe_gateway_first_token_seconds_count") == 1


async def test_a_running_stream_is_finished_before_the_gateway_ends() -> None:
    router = FakeRouter(hangs=True)
    streamed = {**PLAIN, "stream": True}
    async with (
        front(router) as gateway,
        gateway.connections.stream("POST", f"{gateway.url}/v1/completions", json=streamed) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        gateway.host.drain()
        router.release()
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]
