"""Anthropic's own Python package and bare HTTP at `/v1/messages`."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.parts import ANSWER, ARGUMENTS, City, finished
from tests.services.gateway.running import MODEL, USER, Front, front, until
from zipmoe.errors import (
    ContextLengthExceeded,
    CorruptData,
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
    ZipMoeError,
)
from zipmoe.v1 import generation_pb2 as pb

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
PLAIN: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "messages": [USER]}
TOOL: Any = {"name": "weather", "description": "tells it", "input_schema": {"type": "object"}}
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


async def events_of(gateway: Front, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against Anthropic's types."""
    async with gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "ping":
            EVENTS.validate_python(event)
        events.append(event)
    return events


async def test_a_message_is_answered() -> None:
    async with front() as gateway:
        answer = await gateway.anthropic().messages.create(model=MODEL, max_tokens=9, messages=[USER])  # type: ignore[list-item]
    (request,) = gateway.router.requests
    assert (answer.id, answer.type, answer.role, answer.model) == (
        f"msg_{request.request_id}", "message", "assistant", MODEL
    )  # fmt: skip
    (block,) = answer.content
    assert block.type == "text" and block.text == "Hello world!"
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    usage = answer.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens) == (3, 2, 0)
    assert request.stopping.max_new_tokens == 9
    assert request.output.separate_parts


async def test_tokens_of_the_cache_are_not_input_tokens() -> None:
    last = finished()
    last.usage.reused_tokens = 2
    async with front(FakeRouter(last=last)) as gateway, gateway.http() as http:
        usage = (await http.post(PATH, json=PLAIN)).json()["usage"]
        streamed = (await events_of(gateway))[-2]["usage"]
    assert usage == streamed
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (1, 2)


async def test_a_whole_answer_is_one_of_anthropics_types() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway, gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, "tools": [TOOL]})
    message = Message.model_validate(answer.json(), strict=True)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.stop_reason == "tool_use"
    calls = [(block.id, block.name, block.input) for block in message.content if block.type == "tool_use"]
    assert calls == [("id0", "weather", json.loads(ARGUMENTS)), ("id1", "stop", {})]


async def test_the_events_of_a_stream_come_in_anthropics_order() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        events = await events_of(gateway, tools=[TOOL])
    start, delta, stop = (f"content_block_{each}" for each in ("start", "delta", "stop"))
    block = [start, delta, delta, stop]
    assert [event["type"] for event in events] == [
        "message_start", "ping", *block * 3, start, delta, stop, "message_delta", "message_stop"
    ]  # fmt: skip
    begun = events[0]["message"]
    assert (begun["content"], begun["stop_reason"], begun["usage"]["input_tokens"]) == ([], None, 3)
    assert [event["index"] for event in events if "index" in event] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 3
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 2


async def test_anthropics_own_helper_has_the_whole_answer_at_the_end() -> None:
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": [USER], "tools": [TOOL]}
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        client = gateway.anthropic().messages
        whole = await client.create(**asked)
        async with client.stream(**asked) as stream:
            text = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
    assert text == "So: wait"
    left_out = {"parsed_output"}
    assert [block.to_dict() for block in whole.content] == [
        {name: each for name, each in block.to_dict().items() if name not in left_out} for block in final.content
    ]
    assert (final.stop_reason, final.usage.to_dict()) == (whole.stop_reason, whole.usage.to_dict())


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (finished(pb.FINISH_REASON_LENGTH), "max_tokens", None),
        (finished(stop_string="END"), "stop_sequence", "END"),
        (finished(stop_string="of the model itself"), "end_turn", None),
        (finished(), "end_turn", None),
    ],
)
async def test_the_end_of_a_message_has_its_reason(
    last: pb.GenerationFinished, reason: str, sequence: str | None
) -> None:
    async with front(FakeRouter(last=last)) as gateway, gateway.http() as http:
        body = {**PLAIN, "stop_sequences": ["END", "x"]}
        whole = (await http.post(PATH, json=body)).json()
        streamed = (await events_of(gateway, stop_sequences=["END", "x"]))[-2]["delta"]
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert streamed == {"stop_reason": reason, "stop_sequence": sequence}
    assert list(gateway.router.requests[0].stopping.stop_strings) == ["END", "x"]


async def test_every_parameter_arrives_at_the_router() -> None:
    async with front() as gateway:
        client = gateway.anthropic().messages
        asked: Any = {"model": MODEL, "max_tokens": 9, "messages": [USER], "tools": [TOOL]}
        await client.create(
            **asked, system="Be kind", tool_choice={"type": "any"},
            thinking={"type": "enabled", "budget_tokens": 1024}, metadata={"user_id": "me"},
            output_config={"effort": "low"},
            extra_body={"seed": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 4},
        )  # fmt: skip
        system: Any = [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}]
        await client.create(
            **asked, system=system, tool_choice={"type": "tool", "name": "weather"}, thinking={"type": "disabled"}
        )
        schema: Any = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
        await client.create(**asked, tool_choice={"type": "none"}, output_config=schema)
        await client.create(**asked, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    first, named, none, auto = gateway.router.requests
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.25, 4, 5)
    conversation = first.prompt.conversation
    assert [(turn.role, turn.content) for turn in conversation.messages] == [("system", "Be kind"), ("user", "Hi")]
    assert list(named.prompt.conversation.messages[0].parts) == ["Be kind."]
    variables = [json.loads(each.prompt.conversation.template_variables_json) for each in (first, named)]
    assert variables == [{"reasoning_effort": "low", "enable_thinking": True}, {"enable_thinking": False}]
    function = {"name": "weather", "description": "tells it", "parameters": {"type": "object"}}
    assert [json.loads(tool) for tool in conversation.tools_json] == [{"type": "function", "function": function}]
    assert [each.prompt.conversation.one_tool_call for each in (first, named, none, auto)] == [False] * 3 + [True]
    assert [each.prompt.conversation.tool_choice for each in (first, named, none, auto)] == [
        pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED, pb.TOOL_CHOICE_NONE, pb.TOOL_CHOICE_UNSPECIFIED
    ]  # fmt: skip
    assert named.prompt.conversation.tool_name == "weather"
    assert json.loads(none.constraint.json_schema) == {"type": "object"}
    assert not named.HasField("constraint")


async def test_a_schema_of_anthropics_client_is_a_constraint() -> None:
    async with front(FakeRouter(words=('{"name": ', '"Paris"}'), held_back="")) as gateway:
        answer = await gateway.anthropic().messages.parse(
            model=MODEL, max_tokens=9, messages=[USER], output_format=City  # type: ignore[list-item]
        )  # fmt: skip
    assert answer.parsed_output == City(name="Paris")
    assert json.loads(gateway.router.requests[0].constraint.json_schema)["required"] == ["name"]


async def test_a_round_trip_sends_blocks_and_results_back() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        client = gateway.anthropic().messages
        asked: list[Any] = [USER]
        answer = await client.create(model=MODEL, max_tokens=9, messages=asked, tools=[TOOL])
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": "id0", "content": "sunny"},
            {
                "type": "tool_result",
                "tool_use_id": "id1",
                "content": [{"type": "text", "text": "no"}],
                "is_error": True,
            },
            {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Go on"},
        ]
        sent_back: Any = {"role": "assistant", "content": [block.to_dict() for block in answer.content]}
        asked += [sent_back, {"role": "user", "content": results}]
        await client.create(model=MODEL, max_tokens=9, messages=asked, tools=[TOOL])
    turns = gateway.router.requests[1].prompt.conversation.messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool", "tool", "user"]
    assistant, first, second, last = turns[1:]
    assert (assistant.content, assistant.reasoning) == ("So: wait", "Hm, yes")
    calls = [(call.id, call.name, json.loads(call.arguments_json)) for call in assistant.tool_calls]
    assert calls == [("id0", "weather", json.loads(ARGUMENTS)), ("id1", "stop", {})]
    assert (first.content, first.tool_call_id, first.name) == ("sunny", "id0", "weather")
    assert (list(second.parts), second.tool_call_id) == (["no"], "id1")
    assert list(last.parts) == ["Well?", "Go on"]


async def test_an_answer_goes_on_from_the_last_message_of_the_assistant() -> None:
    messages: Any = [USER, {"role": "assistant", "content": "The answer is"}]
    async with front() as gateway:
        await gateway.anthropic().messages.create(model=MODEL, max_tokens=9, messages=messages)
        await gateway.anthropic().messages.create(model=MODEL, max_tokens=9, messages=[*messages, USER])
    assert [each.prompt.conversation.continue_final_message for each in gateway.router.requests] == [True, False]


@pytest.mark.parametrize("path", [PATH, COUNT])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]}, "tools.1.type"),
        ({"tools": [{"input_schema": {}}]}, "tools.0"),
        ({"tools": [{"name": "f", "input_schema": []}]}, "tools.0.input_schema"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": ["auto"]}}, "tool_choice"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
        ({"messages": [USER, {"role": "user", "content": [{"type": "text"}]}]}, "messages.1.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages.0.content.0.name"),
        ({"system": 5}, "system"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"stop_sequences": 5}, "stop_sequences"),
        ({"stop": "x"}, "stop"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"temprature": 1}, "temprature"),
        ({"output_config": {"format": {"type": "yaml"}}}, "output_config.format.type"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_not_served_is_refused_by_name_in_anthropics_form(
    path: str, fields: dict[str, Any], named: str
) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(path, json={**PLAIN, **fields})
    assert answer.status_code == 400
    body = answer.json()
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert named in body["error"]["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert not gateway.router.requests and not gateway.router.tokenized


@pytest.mark.parametrize(
    ("error", "kind", "expected"),
    [
        (InvalidRequest("no"), "invalid_request_error", anthropic.BadRequestError),
        (ContextLengthExceeded("too long"), "invalid_request_error", anthropic.BadRequestError),
        (ResourceExhausted("full", retry_after_s=2), "rate_limit_error", anthropic.RateLimitError),
        (Unavailable("gone"), "overloaded_error", anthropic.InternalServerError),
        (CorruptData("bad"), "api_error", anthropic.InternalServerError),
    ],
)
async def test_errors_reach_anthropics_client(
    error: ZipMoeError, kind: str, expected: type[anthropic.APIStatusError]
) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": [USER]}
    async with front(FakeRouter(refusal=error)) as gateway:
        with pytest.raises(expected) as caught:
            await gateway.anthropic().messages.create(**asked, stream=True)
    body: Any = caught.value.body
    assert body["error"]["type"] == kind
    async with front(FakeRouter(late_refusal=error)) as gateway:
        stream = await gateway.anthropic().messages.create(**asked, stream=True)
        with pytest.raises(anthropic.APIStatusError) as late:
            [event async for event in stream]
    body = late.value.body
    assert body["error"]["type"] == kind and error.message in body["error"]["message"].lower()


async def test_a_key_may_come_as_either_header() -> None:
    asked: Any = {"model": MODEL, "max_tokens": 9, "messages": [USER]}
    async with front(api_key="s3cret") as gateway:
        assert (await gateway.anthropic("s3cret").messages.create(**asked)).content
        with pytest.raises(anthropic.AuthenticationError, match="wrong API key") as caught:
            await gateway.anthropic("other").messages.create(**asked)
        async with gateway.http() as http:
            for headers, status in [
                ({"x-api-key": "s3cret"}, 200),
                ({"authorization": "Bearer s3cret"}, 200),
                ({"authorization": "Bearer s3cret", "x-api-key": "other"}, 200),
                ({"authorization": "Basic s3cret"}, 401),
                ({"x-api-key": ""}, 401),
                ({}, 401),
            ]:
                assert (await http.get("/v1/models", headers=headers)).status_code == status, headers
            unknown = await http.post("/v1/messages/batches")
    body: Any = caught.value.body
    assert body["error"]["type"] == "authentication_error"
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (401, "authentication_error")


async def test_paths_below_messages_have_anthropics_errors_and_others_openais() -> None:
    async with front() as gateway, gateway.http() as http:
        for path, kind in (("/v1/messages/batches", "not_found_error"), ("/v1/messagess", "invalid_request_error")):
            answer = await http.post(path)
            assert (answer.status_code, answer.json()["error"]["type"]) == (404, kind)
        assert "type" not in answer.json()
        wrong = await http.get(PATH)
        assert (wrong.status_code, wrong.headers["allow"], wrong.json()["type"]) == (405, "POST", "error")
        foreign = await http.post(PATH, json=PLAIN, headers={"origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "permission_error")
    async with front(max_request_bytes=1024) as gateway, gateway.http() as http:
        long = await http.post(PATH, json={**PLAIN, "system": "x" * 2000})
        assert (long.status_code, long.json()["error"]["type"]) == (413, "request_too_large")


async def test_a_silent_stream_has_pings() -> None:
    router = FakeRouter(queues=True)
    ping = ["event: ping", 'data: {"type":"ping"}', ""]
    async with (
        front(router, keep_alive_s=0.01) as gateway,
        gateway.http() as http,
        http.stream("POST", PATH, json={**PLAIN, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        assert await anext(lines) == "event: message_start"
        begun = json.loads((await anext(lines)).removeprefix("data: "))
        assert begun["message"]["usage"]["input_tokens"] == 3, "known as soon as the request is queued"
        await anext(lines)
        assert [await anext(lines) for _ in range(9)] == ping * 3
        router.admit()
        rest = [line async for line in lines if line.startswith("event: ")]
    assert rest[-1] == "event: message_stop"


async def test_a_client_that_goes_away_cancels_its_request() -> None:
    router = FakeRouter(hangs=True)
    async with front(router) as gateway:
        async with gateway.http() as http, http.stream("POST", PATH, json={**PLAIN, "stream": True}) as answer:
            await anext(answer.aiter_lines())
        await until(router.cancelled.is_set)
        await until(lambda: gateway.metric("zipmoe_gateway_requests_total", route=PATH, status="499") == 1)


async def test_the_tokens_of_a_prompt_are_counted() -> None:
    async with front() as gateway:
        counted = await gateway.anthropic().messages.count_tokens(
            model=MODEL, messages=[USER], system="Be kind", tools=[TOOL]  # type: ignore[list-item]
        )  # fmt: skip
    assert counted.input_tokens == 8
    (asked,) = gateway.router.tokenized
    conversation = asked.prompt.conversation
    assert [turn.role for turn in conversation.messages] == ["system", "user"]
    assert len(conversation.tools_json) == 1


async def test_the_models_are_listed_with_the_fields_of_anthropics_package() -> None:
    async with front() as gateway:
        client = gateway.anthropic()
        page = await client.models.list()
        card = await client.models.retrieve(MODEL)
        listed = [model async for model in client.models.list()]
        of_openai = await gateway.openai().models.retrieve(MODEL)
    assert (page.has_more, page.first_id, page.last_id) == (False, MODEL, MODEL)
    assert listed == page.data == [card]
    assert (card.type, card.id, card.display_name) == ("model", MODEL, MODEL)
    assert card.created_at.timestamp() == of_openai.created
