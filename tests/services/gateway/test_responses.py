"""OpenAI's own Python package and bare HTTP at `/v1/responses`."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.parts import ANSWER, ARGUMENTS, City, finished, token
from tests.services.gateway.running import MODEL, Front, front, until
from zipmoe.errors import ContextLengthExceeded, CorruptData, InvalidRequest, ResourceExhausted, ZipMoeError
from zipmoe.v1 import generation_pb2 as pb

PATH = "/v1/responses"
PLAIN: dict[str, Any] = {"model": MODEL, "input": "Hi"}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "tells it",
    "parameters": {"type": "object"},
    "strict": True,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def events_of(gateway: Front, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against OpenAI's types and the rules of the stream."""
    async with gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, **fields, "stream": True})
    assert answer.status_code == 200, answer.text
    events = []
    for block in answer.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENTS.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def test_a_text_is_answered() -> None:
    async with front() as gateway:
        answer = await gateway.openai().responses.create(model=MODEL, input="Hi")
    (request,) = gateway.router.requests
    assert (answer.id, answer.object, answer.status) == (f"resp_{request.request_id}", "response", "completed")
    assert answer.output_text == "Hello world!"
    assert [item.type for item in answer.output] == ["message"]
    usage = answer.usage
    assert usage is not None and (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 2, 5)
    assert (answer.tools, answer.tool_choice, answer.parallel_tool_calls, answer.error) == ([], "auto", True, None)
    (turn,) = request.prompt.conversation.messages
    assert (turn.role, turn.content) == ("user", "Hi")
    assert request.output.separate_parts
    assert not request.stopping.HasField("max_new_tokens")


async def test_a_whole_answer_is_one_of_openais_types() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway, gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, "metadata": {"a": "b"}, "temperature": 0.5, "tools": [TOOL]})
    given = answer.json()
    response = Response.model_validate(given, strict=True)
    assert (response.metadata, response.temperature) == ({"a": "b"}, 0.5)
    assert given["tools"] == [TOOL] and given["store"] is False


async def test_settings_are_repeated_whatever_their_characters() -> None:
    body = json.dumps({**PLAIN, "metadata": {"half": "a\ud800"}, "user": "\U0001f680"})
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert (answer.json()["metadata"], answer.json()["user"]) == ({"half": "a?"}, "\U0001f680")


async def test_reasoning_text_and_calls_are_items() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        answer = await gateway.openai().responses.create(model=MODEL, input="Hi", tools=[TOOL])
    reasoning, message, *calls = answer.output
    assert reasoning.type == "reasoning" and [each.text for each in reasoning.content or []] == ["Hm, yes"]
    assert message.type == "message" and answer.output_text == "So: wait"
    found = [(call.call_id, call.name, call.arguments) for call in calls if call.type == "function_call"]
    assert found == [("id0", "weather", ARGUMENTS), ("id1", "stop", "{}")]
    assert answer.usage is not None and answer.usage.output_tokens_details.reasoning_tokens == 2


async def test_the_events_of_a_stream_come_in_openais_order() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        events = await events_of(gateway, tools=[TOOL])
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event["output_index"] for event in events if "output_index" in event] == [0] * 7 + [1] * 7 + [2] * 5 + [
        3
    ] * 4
    assert events[0]["response"]["status"] == "in_progress" and events[0]["response"]["output"] == []
    final = events[-1]["response"]
    assert final["output"] == [event["item"] for event in events if event["type"] == "response.output_item.done"]


async def test_openais_own_helper_has_the_whole_answer_at_the_end() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        client = gateway.openai().responses
        whole = await client.create(model=MODEL, input="Hi", tools=[TOOL])
        async with client.stream(model=MODEL, input="Hi", tools=[TOOL]) as stream:
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text

    parsed = {"id", "parsed", "parsed_arguments"}
    assert [_without(item.to_dict(), parsed) for item in final.output] == [
        _without(item.to_dict(), parsed) for item in whole.output
    ]


def _without(value: Any, names: set[str]) -> Any:
    """A JSON value without the fields of some names, at any depth."""
    if isinstance(value, list):
        return [_without(each, names) for each in value]
    if isinstance(value, dict):
        return {name: _without(each, names) for name, each in value.items() if name not in names}
    return value


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_limit_cuts_is_incomplete(stream: bool) -> None:
    router = FakeRouter(tokens=ANSWER[:6], held_back="", reason=pb.FINISH_REASON_LENGTH)
    async with front(router) as gateway:
        if stream:
            events = await events_of(gateway, max_output_tokens=7)
            assert events[-1]["type"] == "response.incomplete"
            answer = Response.model_validate(events[-1]["response"])
        else:
            answer = await gateway.openai().responses.create(model=MODEL, input="Hi", max_output_tokens=7)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    assert [getattr(item, "status", None) for item in answer.output] == ["completed", "completed", "incomplete"]
    assert router.requests[0].stopping.max_new_tokens == 7


async def test_every_parameter_arrives_at_the_router() -> None:
    async with front() as gateway:
        client = gateway.openai().responses
        await client.create(
            model=MODEL, input="Hi", instructions="Be kind", temperature=0.5, top_p=0.25, max_output_tokens=9,
            reasoning={"effort": "low", "summary": "auto"}, tools=[TOOL], tool_choice="required", store=True,
            include=["reasoning.encrypted_content"], parallel_tool_calls=False, truncation="auto", user="me",
            extra_body={"top_k": 4, "seed": 5, "stop": "x", "chat_template_kwargs": {"a": 1}},
        )  # fmt: skip
        await client.create(model=MODEL, input="Hi", tools=[TOOL], tool_choice={"type": "function", "name": "weather"})
        await client.create(
            model=MODEL, input="Hi", tools=[TOOL], tool_choice="none", reasoning={"effort": "none"},
            text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}},
        )  # fmt: skip
        await client.create(model=MODEL, input="Hi", text={"format": {"type": "json_object"}}, previous_response_id="")
    first, named, none, json_object = gateway.router.requests
    sampling = first.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.25, 4, 5)
    assert (first.stopping.max_new_tokens, list(first.stopping.stop_strings)) == (9, ["x"])
    conversation = first.prompt.conversation
    turns = [(turn.role, turn.content) for turn in conversation.messages]
    assert turns == [("system", "Be kind"), ("user", "Hi")]
    assert json.loads(conversation.template_variables_json) == {"reasoning_effort": "low", "a": 1}
    function = {"name": "weather", "description": "tells it", "parameters": {"type": "object"}}
    assert [json.loads(tool) for tool in conversation.tools_json] == [{"type": "function", "function": function}]
    choices = [each.prompt.conversation.tool_choice for each in (first, named, none)]
    assert choices == [pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED, pb.TOOL_CHOICE_NONE]
    assert named.prompt.conversation.tool_name == "weather"
    assert json.loads(none.prompt.conversation.template_variables_json) == {"enable_thinking": False}
    assert json.loads(none.constraint.json_schema) == {"type": "object"}
    assert json_object.constraint.json_object


async def test_a_schema_of_openais_client_is_a_constraint() -> None:
    async with front(FakeRouter(words=('{"name": ', '"Paris"}'), held_back="")) as gateway:
        answer = await gateway.openai().responses.parse(model=MODEL, input="Hi", text_format=City)
    assert answer.output_parsed == City(name="Paris")
    assert json.loads(gateway.router.requests[0].constraint.json_schema)["required"] == ["name"]


async def test_a_round_trip_sends_the_output_back() -> None:
    async with front(FakeRouter(tokens=ANSWER, held_back="")) as gateway:
        client = gateway.openai().responses
        asked: list[Any] = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": "weather?"}]
        answer = await client.create(model=MODEL, input=asked, tools=[TOOL])
        asked += [item.to_dict() for item in answer.output]
        asked += [
            {"type": "function_call_output", "call_id": "id0", "output": "sunny"},
            {"type": "function_call_output", "call_id": "id1", "output": [{"type": "input_text", "text": "stopped"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Well?"}]},
        ]
        await client.create(model=MODEL, input=asked, tools=[TOOL])
    turns = gateway.router.requests[1].prompt.conversation.messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "tool", "user"]
    assistant, first, second, last = turns[2:]
    assert (assistant.content, assistant.reasoning) == ("So: wait", "Hm, yes")
    calls = [(call.id, call.name, call.arguments_json) for call in assistant.tool_calls]
    assert calls == [("id0", "weather", ARGUMENTS), ("id1", "stop", "{}")]
    assert (first.content, first.tool_call_id, first.name) == ("sunny", "id0", "weather")
    assert (list(second.parts), second.tool_call_id, second.name) == (["stopped"], "id1", "stop")
    assert list(last.parts) == ["Well?"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL, {"type": "mcp", "server_label": "x"}]}, "tools.1.type"),
        ({"tools": [{"type": "code_interpreter", "name": "x"}]}, "tools.0.type"),
        ({"tools": [{"name": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0"),
        ({"tools": [{"type": "function", "name": "f", "parameters": []}]}, "tools.0.parameters"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": -2}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"reasoning": {"effort": "extreme"}}, "reasoning.effort"),
        ({"reasoning": "high"}, "reasoning"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": ["Hi"]}, "input.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"type": "function_call", "arguments": "{}"}]}, "input.0.name"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input.0.output"),
        ({"model": None}, "model"),
    ],
)
async def test_what_is_not_kept_or_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    async with front() as gateway, gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param in error["message"]
    assert not gateway.router.requests


async def test_errors_before_a_stream_have_their_status() -> None:
    errors: list[tuple[ZipMoeError, type[openai.APIStatusError]]] = [
        (InvalidRequest("no"), openai.BadRequestError),
        (ContextLengthExceeded("too long"), openai.BadRequestError),
        (ResourceExhausted("full"), openai.RateLimitError),
    ]
    for error, expected in errors:
        async with front(FakeRouter(refusal=error)) as gateway:
            with pytest.raises(expected):
                await gateway.openai().responses.create(model=MODEL, input="Hi", stream=True)
    async with front() as gateway:
        with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
            await gateway.openai().responses.create(model="other", input="Hi")
        with pytest.raises(openai.NotFoundError, match="no such path"):
            await gateway.openai().responses.retrieve("resp_1")
    async with front(FakeRouter(has_chat_template=False)) as gateway:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            await gateway.openai().responses.create(model=MODEL, input="Hi")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CorruptData("bad chunk"), "server_error"),
        (ResourceExhausted("full"), "rate_limit_exceeded"),
        (ContextLengthExceeded("too long"), "context_length_exceeded"),
    ],
)
async def test_an_error_after_the_headers_is_a_failed_response(error: ZipMoeError, code: str) -> None:
    async with front(FakeRouter(late_refusal=error)) as gateway, gateway.http() as http:
        answer = await http.post(PATH, json={**PLAIN, "stream": True})
    *_, last, end = answer.text.split("\n\n")
    event = json.loads(last.partition("data: ")[2])
    assert (event["type"], event["sequence_number"], end) == ("response.failed", 2, "")
    assert event["response"]["status"] == "failed"
    assert event["response"]["error"]["code"] == code


async def test_a_queued_stream_has_its_first_events_and_then_comments() -> None:
    router = FakeRouter(queues=True)
    async with (
        front(router, keep_alive_s=0.01) as gateway,
        gateway.http() as http,
        http.stream("POST", PATH, json={**PLAIN, "stream": True}) as answer,
    ):
        lines = answer.aiter_lines()
        begun = [await anext(lines) for _ in range(6)]
        assert [begun[0], begun[3]] == ["event: response.created", "event: response.in_progress"]
        assert [await anext(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        router.admit()
        rest = [line async for line in lines if line.startswith("event: ")]
    assert rest[-1] == "event: response.completed"


async def test_a_client_that_goes_away_cancels_its_request() -> None:
    router = FakeRouter(hangs=True)
    async with front(router) as gateway:
        async with gateway.http() as http, http.stream("POST", PATH, json={**PLAIN, "stream": True}) as answer:
            await anext(answer.aiter_lines())
        await until(router.cancelled.is_set)
        await until(lambda: gateway.metric("zipmoe_gateway_requests_total", route=PATH, status="499") == 1)


async def test_the_tokens_of_an_input_are_counted() -> None:
    async with front() as gateway:
        counted = await gateway.openai().responses.input_tokens.count(model=MODEL, input="Hi", instructions="Be kind")
    assert (counted.input_tokens, counted.object) == (8, "response.input_tokens")
    (asked,) = gateway.router.tokenized
    assert [turn.role for turn in asked.prompt.conversation.messages] == ["system", "user"]


async def test_the_end_may_bring_text_that_was_held_back() -> None:
    router = FakeRouter(tokens=[token("a")], last=finished(text="b"))
    async with front(router) as gateway:
        events = await events_of(gateway)
    assert [event["delta"] for event in events if event["type"].endswith("delta")] == ["a", "b"]
