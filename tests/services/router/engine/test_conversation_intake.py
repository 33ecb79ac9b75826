"""Conversations of gRPC requests become the turns and tools that chat templates take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.answer_formats import AnswerFormats, AnswerReading
from zipmoe.model.conversation.call_formats import HERMES
from zipmoe.services.router.engine.conversation_intake import chat_request, demanded_calls
from zipmoe.v1 import generation_pb2 as pb

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}, "more": 1}}
USER = pb.ChatMessage(role="user", content="hi")


def test_messages_keep_what_templates_read() -> None:
    call = pb.ToolCall(id="abcdefghi", name="weather", arguments_json='{"city": "Paris"}')
    asked = chat_request(
        pb.Conversation(
            messages=[
                pb.ChatMessage(role="user", parts=["How ", "are you?"], name="Ann"),
                pb.ChatMessage(role="assistant", reasoning="Hm", tool_calls=[call]),
                pb.ChatMessage(role="tool", content="sunny", tool_call_id="abcdefghi"),
            ],
            tools_json=[json.dumps(TOOL)],
            template_name="tool_use",
            template_variables_json='{"enable_thinking": false}',
        )
    )
    function = {"name": "weather", "arguments": {"city": "Paris"}}
    assert asked.turns == [
        {"role": "user", "content": ["How ", "are you?"], "name": "Ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm",
            "tool_calls": [{"type": "function", "id": "abcdefghi", "function": function}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "abcdefghi"},
    ]
    assert asked.tools == [TOOL]
    assert (asked.template, asked.variables) == ("tool_use", {"enable_thinking": False})


def test_a_call_that_is_no_valid_json_stays_text() -> None:
    calls = [pb.ToolCall(name="f", arguments_json=text) for text in ('{"a": ', "[1]", "", "[" * 100_000)]
    asked = chat_request(pb.Conversation(messages=[pb.ChatMessage(role="assistant", tool_calls=calls)]))
    arguments = [call["function"]["arguments"] for call in asked.turns[0]["tool_calls"]]
    assert arguments == ['{"a": ', "[1]", {}, "[" * 100_000]


def test_without_a_choice_of_tools_the_template_gets_none() -> None:
    tools = [json.dumps(TOOL)]
    for choice, seen in (
        (pb.TOOL_CHOICE_UNSPECIFIED, 1),
        (pb.TOOL_CHOICE_AUTO, 1),
        (pb.TOOL_CHOICE_NONE, 0),
    ):
        asked = chat_request(pb.Conversation(messages=[USER], tools_json=tools, tool_choice=choice))
        assert len(asked.tools) == seen


@pytest.mark.parametrize(
    ("fields", "opens", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"add_generation_prompt": True}, True, False),
        ({"continue_final_message": True}, False, True),
    ],
)
def test_a_conversation_says_how_it_ends(fields: dict[str, bool], opens: bool, continues: bool) -> None:
    asked = chat_request(pb.Conversation(messages=[USER], **fields))
    assert (asked.opens_answer, asked.continues) == (opens, continues)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        (pb.Conversation(messages=[pb.ChatMessage(content="x")]), "message 0 has no role"),
        (pb.Conversation(messages=[pb.ChatMessage(role="user", content="x", parts=["y"])]), "a content and parts"),
        (pb.Conversation(messages=[pb.ChatMessage(role="assistant", tool_calls=[pb.ToolCall()])]), "has no name"),
        (pb.Conversation(messages=[USER], tools_json=["{"]), r"tools_json\[0\] is not JSON"),
        (pb.Conversation(messages=[USER], tools_json=["[]"]), r"tools_json\[0\] has to be a JSON object"),
        (pb.Conversation(messages=[USER], tools_json=['{"type": "function"}']), r"tools_json\[0\] is no tool"),
        (
            pb.Conversation(messages=[USER], tools_json=['{"function": {"name": "f", "parameters": 1}}']),
            r"parameters of tools_json\[0\] are no JSON schema",
        ),
        (pb.Conversation(messages=[USER], tools_json=["{}"] * 513), "513 tools, but at most 512"),
        (pb.Conversation(messages=[USER], template_variables_json="x"), "template_variables_json is not JSON"),
        (pb.Conversation(messages=[USER], template_variables_json="[" * 100_000), "is not JSON"),
        (pb.Conversation(messages=[USER], tool_choice=pb.TOOL_CHOICE_REQUIRED), "there is no tool"),
        (
            pb.Conversation(messages=[USER], add_generation_prompt=True, continue_final_message=True),
            "add_generation_prompt and continue_final_message exclude each other",
        ),
        (
            pb.Conversation(messages=[USER], tool_choice=pb.TOOL_CHOICE_NAMED, tool_name="f"),
            "names 'f', which is none of the tools",
        ),
    ],
)
def test_a_conversation_that_is_not_understood_is_refused_by_the_name_of_the_field(
    conversation: pb.Conversation, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        chat_request(conversation)


READING = AnswerReading(AnswerFormats(calls=HERMES), tools={"weather": {}, "stop": {}})


def demanding(choice: pb.ToolChoice, **fields: Any) -> pb.GenerateRequest:
    conversation = pb.Conversation(messages=[USER], tool_choice=choice, **fields)
    return pb.GenerateRequest(prompt=pb.Prompt(conversation=conversation))


@pytest.mark.parametrize(
    ("request_", "names", "several"),
    [
        (demanding(pb.TOOL_CHOICE_REQUIRED), ["weather", "stop"], True),
        (demanding(pb.TOOL_CHOICE_REQUIRED, one_tool_call=True), ["weather", "stop"], False),
        (demanding(pb.TOOL_CHOICE_NAMED, tool_name="stop"), ["stop"], False),
    ],
)
def test_a_choice_of_tools_may_demand_calls(request_: pb.GenerateRequest, names: list[str], several: bool) -> None:
    demanded = demanded_calls(request_, READING)
    assert demanded is not None
    assert [tool.name for tool in demanded.tools] == names
    assert demanded.several is several


def test_other_choices_demand_nothing() -> None:
    for choice in (pb.TOOL_CHOICE_UNSPECIFIED, pb.TOOL_CHOICE_AUTO, pb.TOOL_CHOICE_NONE):
        assert demanded_calls(demanding(choice, one_tool_call=True), READING) is None
    assert demanded_calls(pb.GenerateRequest(prompt=pb.Prompt(text="Hi")), READING) is None


@pytest.mark.parametrize("name", ["constraint", "forced_token_ids", "ignore_eos", "continue_final_message"])
def test_a_demanded_call_excludes_what_constrains_the_answer_too(name: str) -> None:
    request = demanding(pb.TOOL_CHOICE_REQUIRED, continue_final_message=name == "continue_final_message")
    if name == "constraint":
        request.constraint.json_object = True
    elif name == "forced_token_ids":
        request.forced_token_ids.append(1)
    elif name == "ignore_eos":
        request.stopping.ignore_eos = True
    with pytest.raises(InvalidRequest, match=f"{name} and a tool_choice that demands a call exclude each other"):
        demanded_calls(request, READING)
