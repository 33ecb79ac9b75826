"""Tools, reasoning and settings of the chat template, through OpenAI's own Python package."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.cli.fake_router import FakeRouter
from tests.services.gateway.parts import part, token
from tests.services.gateway.running import MODEL, USER, front
from zipmoe.v1 import generation_pb2 as pb

TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "tells it", "parameters": {"type": "object"}, "strict": True},
}


CALLING = [
    token(reasoning="Hm"),
    token("So:", ", yes"),
    token("", "", part(0, '{"city": ', "weather")),
    token("", "", part(0, '"Paris"}'), part(1, "{}", "stop")),
]


async def test_an_answer_that_calls_tools_says_so() -> None:
    async with front(FakeRouter(tokens=CALLING, held_back="")) as gateway:
        answer = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "So:"
    assert choice.message.model_extra == {"reasoning_content": "Hm, yes"}
    calls = choice.message.tool_calls or []
    assert [(call.id, call.type) for call in calls] == [("id0", "function"), ("id1", "function")]
    functions: list[Any] = [call.to_dict()["function"] for call in calls]
    assert functions == [{"name": "weather", "arguments": '{"city": "Paris"}'}, {"name": "stop", "arguments": "{}"}]


async def test_an_answer_of_calls_alone_has_no_content() -> None:
    async with front(FakeRouter(tokens=CALLING[2:], held_back="")) as gateway:
        answer = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL])
    assert answer.choices[0].message.content is None


async def test_reasoning_and_calls_are_streamed_as_they_come() -> None:
    async with front(FakeRouter(tokens=CALLING, held_back="")) as gateway:
        stream = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL], stream=True)
        choices = [choice async for chunk in stream for choice in chunk.choices]
    deltas = [choice.delta.to_dict(exclude_unset=True) for choice in choices]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm"},
        {"reasoning_content": ", yes"},
        {"content": "So:"},
        {"tool_calls": [
            {"index": 0, "id": "id0", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}}
        ]},
        {"tool_calls": [
            {"index": 0, "function": {"arguments": '"Paris"}'}},
            {"index": 1, "id": "id1", "type": "function", "function": {"name": "stop", "arguments": "{}"}},
        ]},
        {},
    ]  # fmt: skip
    assert [choice.finish_reason for choice in choices] == [None] * 6 + ["tool_calls"]


async def test_openais_own_helper_puts_streamed_calls_together() -> None:
    async with front(FakeRouter(tokens=CALLING, held_back="")) as gateway:
        client = gateway.openai().chat.completions
        async with client.stream(model=MODEL, messages=[USER], tools=[TOOL]) as stream:
            final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments or call.function.arguments for call in calls] == [{"city": "Paris"}, "{}"]


async def test_tools_and_settings_arrive_at_the_router() -> None:
    async with front() as gateway:
        client = gateway.openai().chat.completions
        await client.create(
            model=MODEL, messages=[USER], tools=[TOOL], reasoning_effort="low",
            extra_body={
                "chat_template": "tool_use", "chat_template_kwargs": {"a": [1]}, "enable_thinking": True
            },
        )  # fmt: skip
        await client.create(model=MODEL, messages=[USER], tools=[TOOL], tool_choice="none", reasoning_effort="none")
        await client.create(model=MODEL, messages=[USER], tools=[TOOL], tool_choice="required")
        named: Any = {"type": "function", "function": {"name": "weather"}}
        await client.create(model=MODEL, messages=[USER], tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    first, none, required, last = (request.prompt.conversation for request in gateway.router.requests)
    assert [json.loads(tool) for tool in first.tools_json] == [TOOL], "as the client wrote it"
    assert first.template_name == "tool_use"
    variables = {"reasoning_effort": "low", "enable_thinking": True, "a": [1]}
    assert json.loads(first.template_variables_json) == variables
    assert json.loads(none.template_variables_json) == {"enable_thinking": False}
    choices = [each.tool_choice for each in (first, none, required, last)]
    assert choices == [
        pb.TOOL_CHOICE_UNSPECIFIED, pb.TOOL_CHOICE_NONE, pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED
    ]  # fmt: skip
    assert last.tool_name == "weather"
    assert [each.one_tool_call for each in (first, required, last)] == [False, False, True]
    assert all(request.output.separate_parts for request in gateway.router.requests)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice demands a call, but there are no tools"),
        ({"tool_choice": "required", "tools": []}, "tool_choice demands a call, but there are no tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "rain"}}, "tools": [TOOL]},
            'tool_choice names "rain", which is none of the tools',
        ),
        (
            {"tool_choice": "required", "tools": [TOOL], "response_format": {"type": "json_object"}},
            "response_format and a tool_choice that demands a call exclude each other",
        ),
        (
            {"tool_choice": "required", "tools": [TOOL], "guided_choice": ["a"]},
            "guided_choice and a tool_choice that demands a call exclude each other",
        ),
    ],
)
async def test_a_call_that_cannot_be_demanded_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    async with front() as gateway:
        with pytest.raises(openai.BadRequestError, match=message):
            await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], extra_body=fields)
        text: Any = {"tool_choice": "required", "tools": [TOOL], "response_format": {"type": "text"}}
        await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], extra_body=text)
    assert len(gateway.router.requests) == 1


async def test_a_round_trip_sends_calls_and_results_back() -> None:
    async with front(FakeRouter(tokens=CALLING, held_back="")) as gateway:
        client = gateway.openai().chat.completions
        answer = await client.create(model=MODEL, messages=[USER], tools=[TOOL])
        sent_back: Any = answer.choices[0].message.to_dict()
        result: Any = {"role": "tool", "tool_call_id": "id0", "content": "sunny", "name": "weather"}
        bare: Any = {"role": "assistant", "tool_calls": sent_back["tool_calls"]}
        await client.create(model=MODEL, messages=[USER, sent_back, result, bare], tools=[TOOL])
    _, second = gateway.router.requests
    _, assistant, tool, without = second.prompt.conversation.messages
    assert (assistant.role, assistant.content, assistant.reasoning) == ("assistant", "So:", "Hm, yes")
    calls = [(call.id, call.name, call.arguments_json) for call in assistant.tool_calls]
    assert calls == [("id0", "weather", '{"city": "Paris"}'), ("id1", "stop", "{}")]
    assert (tool.role, tool.content, tool.tool_call_id, tool.name) == ("tool", "sunny", "id0", "weather")
    assert (without.content, len(without.tool_calls)) == ("", 2)


async def test_fields_that_other_clients_add_to_messages_are_taken() -> None:
    messages: Any = [
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Hi", "cache_control": {"type": "x"}}]},
        {"role": "assistant", "content": None, "reasoning": "Hm", "refusal": None, "annotations": [], "audio": None},
        {**USER, "cache_control": {"type": "ephemeral"}},
    ]
    async with front() as gateway:
        await gateway.openai().chat.completions.create(model=MODEL, messages=messages)
    first, second, _ = gateway.router.requests[0].prompt.conversation.messages
    assert (first.name, list(first.parts)) == ("Ann", ["Hi"])
    assert (second.content, second.reasoning) == ("", "Hm")


async def test_a_cut_answer_is_not_said_to_have_called() -> None:
    router = FakeRouter(tokens=CALLING[:3], held_back="", reason=pb.FINISH_REASON_LENGTH)
    async with front(router) as gateway:
        answer = await gateway.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[TOOL])
    assert answer.choices[0].finish_reason == "length"


async def test_a_plain_completion_is_all_text() -> None:
    async with front() as gateway:
        await gateway.openai().completions.create(model=MODEL, prompt="<think>")
        with pytest.raises(openai.BadRequestError, match="unknown parameter: tools"):
            await gateway.openai().completions.create(model=MODEL, prompt="Hi", extra_body={"tools": [TOOL]})
    assert not gateway.router.requests[0].output.separate_parts
