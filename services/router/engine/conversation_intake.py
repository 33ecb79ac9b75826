"""Converts a conversation of a gRPC request into the turns and tools that a chat template takes."""

from __future__ import annotations

import json
from typing import Any, Final

from zipmoe.errors import InvalidRequest
from zipmoe.model.conversation.answer_formats import AnswerReading
from zipmoe.model.conversation.chat_request import ChatRequest
from zipmoe.model.text.tool_grammar import DemandedCalls
from zipmoe.v1 import generation_pb2 as pb

MAX_TOOLS: Final = 512
_TOOL_FIELDS: Final = "a tool is an object with a function that has a name, and perhaps a description and parameters"


def chat_request(conversation: pb.Conversation) -> ChatRequest:
    """Converts a conversation.

    Raises:
        InvalidRequest: a message has no role or two contents, or a tool, a call or the variables are not the JSON that
            the protocol demands; the message names the field.
    """
    tools = _tools(conversation)
    variables = _object("template_variables_json", conversation.template_variables_json or "{}")
    return ChatRequest(
        turns=[_turn(index, message) for index, message in enumerate(conversation.messages)],
        tools=() if conversation.tool_choice == pb.TOOL_CHOICE_NONE else tools,
        template=conversation.template_name,
        variables=variables,
        opens_answer=_opens_answer(conversation),
        continues=conversation.continue_final_message,
    )


def _opens_answer(conversation: pb.Conversation) -> bool:
    """Returns whether the prompt ends with the beginning of an answer.

    Raises:
        InvalidRequest: the last message is to be continued as well.
    """
    if not conversation.HasField("add_generation_prompt"):
        return not conversation.continue_final_message
    if conversation.add_generation_prompt and conversation.continue_final_message:
        raise InvalidRequest("add_generation_prompt and continue_final_message exclude each other")
    return conversation.add_generation_prompt


def demanded_calls(request: pb.GenerateRequest, reading: AnswerReading) -> DemandedCalls | None:
    """Returns the calls of which the answer has to consist; None if the model decides.

    Args:
        request: its conversation was accepted by `chat_request`.
        reading: the formats and the tools of the answer.

    Raises:
        InvalidRequest: the model has no known format of calls, or another field constrains the answer too.
    """
    conversation = request.prompt.conversation
    if conversation.tool_choice not in (pb.TOOL_CHOICE_REQUIRED, pb.TOOL_CHOICE_NAMED):
        return None
    others = {
        "constraint": request.HasField("constraint"),
        "forced_token_ids": bool(request.forced_token_ids),
        "ignore_eos": request.stopping.ignore_eos,
        "continue_final_message": conversation.continue_final_message,
    }
    for name, is_set in others.items():
        if is_set:
            raise InvalidRequest(f"{name} and a tool_choice that demands a call exclude each other")
    if conversation.tool_choice == pb.TOOL_CHOICE_NAMED:
        return reading.demanded_calls({conversation.tool_name}, several=False)
    return reading.demanded_calls(reading.tools, several=not conversation.one_tool_call)


def _tools(conversation: pb.Conversation) -> list[dict[str, Any]]:
    if len(conversation.tools_json) > MAX_TOOLS:
        raise InvalidRequest(f"the conversation has {len(conversation.tools_json)} tools, but at most {MAX_TOOLS}")
    tools = [_object(f"tools_json[{index}]", text) for index, text in enumerate(conversation.tools_json)]
    names = set()
    for index, tool in enumerate(tools):
        function = tool.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if not (isinstance(name, str) and name):
            raise InvalidRequest(f"tools_json[{index}] is no tool", next_step=_TOOL_FIELDS)
        parameters = function.get("parameters") if isinstance(function, dict) else None
        if not isinstance(parameters, dict | None):
            raise InvalidRequest(f"the parameters of tools_json[{index}] are no JSON schema", next_step=_TOOL_FIELDS)
        names.add(name)
    if conversation.tool_choice == pb.TOOL_CHOICE_NAMED and conversation.tool_name not in names:
        raise InvalidRequest(f"tool_choice names {conversation.tool_name[:64]!r}, which is none of the tools")
    if conversation.tool_choice == pb.TOOL_CHOICE_REQUIRED and not names:
        raise InvalidRequest("tool_choice demands a call, but there is no tool")
    return tools


def _turn(index: int, message: pb.ChatMessage) -> dict[str, Any]:
    if not message.role:
        raise InvalidRequest(f"message {index} has no role")
    if message.content and message.parts:
        raise InvalidRequest(f"message {index} has a content and parts, but it has to be one of the two")
    turn: dict[str, Any] = {
        "role": message.role,
        "content": list(message.parts) if message.parts else message.content,
    }
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    if message.name:
        turn["name"] = message.name
    return turn


def _call(call: pb.ToolCall) -> dict[str, Any]:
    if not call.name:
        raise InvalidRequest("a tool call of a message has no name")
    arguments: Any = call.arguments_json or "{}"
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None  # models do write calls that are not valid JSON: they stay text
    function = {"name": call.name, "arguments": parsed if isinstance(parsed, dict) else arguments}
    return {"type": "function", **({"id": call.id} if call.id else {}), "function": function}


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"{field} has to be a JSON object")
    return value
