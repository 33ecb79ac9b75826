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
        ({**PLAIN, "n": 2}, "n", "not supported but as 1"),
        ({**PLAIN, "n": True}, "n", "valid integer"),
        ({**PLAIN, "best_of": 2}, "best_of", "not supported"),
        ({**PLAIN, "echo": True}, "echo", "not supported but as false"),
        ({**PLAIN, "suffix": "x"}, "suffix", "not supported"),
        ({**PLAIN, "logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({**PLAIN, "presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({**PLAIN, "logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({**PLAIN, "max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({**PLAIN, "max_tokens": "9"}, "max_tokens", "valid integer"),
        ({**PLAIN, "temperature": "hot"}, "temperature", "valid number"),
        ({**PLAIN, "stop": ["x"] * 17}, "stop", "at most 16"),
        ({**PLAIN, "stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({**PLAIN, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown parameter"),
        ({**PLAIN, "temprature": 0}, "temprature", "unknown parameter"),
        ({"model": MODEL, "prompt": ["a", "b"]}, "prompt", "2 prompts in one request"),
        ({"model": MODEL, "prompt": []}, "prompt", "0 prompts in one request"),
        ({"model": MODEL, "prompt": {"text": "Hi"}}, "prompt", "valid"),
        ({"model": MODEL, "prompt": ""}, None, "the prompt is empty"),
        ({"model": MODEL, "prompt": [-1]}, None, "the prompt cannot be sent"),
        ({**PLAIN, "max_tokens": 2**40}, None, "a parameter cannot be sent"),
    ],
)
async def test_what_is_not_understood_is_refused_and_named(
    body: dict[str, Any], param: str | None, message: str
) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post("/v1/completions", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]
    assert not gateway.router.requests


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format.json_schema"),
        ({"guided_choice": "yes"}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt": "Hi"}, "prompt"),
    ],
)
async def test_what_a_chat_cannot_do_is_refused_and_named(more: dict[str, Any], param: str) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": [USER], **more})
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
    assert f"parts of type '{kind}'; only text is served" in error["message"]


async def test_values_that_change_nothing_are_accepted() -> None:
    neutral = {
        "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "modalities": ["text"], "stream": None, "stop": None,
        "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
    }  # fmt: skip
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={"model": MODEL, "messages": [USER], **neutral})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff", b'"x"', b"null", b'{"model": "fake", "prompt": "\\ud800"}']
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
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
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


@pytest.mark.parametrize("path", ["/healthz", "/v1/models"])
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
        assert (await http.get("/healthz")).json() == {"status": "ok", "model": MODEL}
        assert (await http.get("/v1/nothing")).status_code == 401, "not even the paths are told"
    async with front(target="unix:/nonexistent") as gateway, gateway.http() as http:
        assert (await http.get("/healthz")).status_code == 503


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
