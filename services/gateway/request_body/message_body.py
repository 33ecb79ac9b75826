"""Reads the bodies of Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zipmoe.client import Message
from zipmoe.services.gateway.request_body.answer_form import text_format
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, required, taken
from zipmoe.services.gateway.request_body.chat_messages import contents
from zipmoe.services.gateway.request_body.chat_tools import effort, flat_tools, message_tool_choice
from zipmoe.services.gateway.request_body.generation_body import (
    GenerationBody,
    conversation_of,
    generation_of,
    json_of,
)
from zipmoe.services.gateway.request_body.message_blocks import message_blocks
from zipmoe.services.gateway.request_body.shared_fields import GENERATION_FIELDS, MAX_STOPS, TEMPLATE_FIELDS
from zipmoe.services.gateway.request_body.value_readers import ceiling, flag, invalid, shown, text, texts

_THINKING_KINDS: Final = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}

_THINKING: Final[Mapping[str, BodyField]] = {
    "type": taken("type", text),
    "budget_tokens": IGNORED,  # max_tokens limits thinking and answer together
    "display": IGNORED,
}
_OUTPUT_CONFIG: Final[Mapping[str, BodyField]] = {
    "effort": taken("effort", effort),
    "format": taken("format", text_format),
}


def _thinking(name: str, value: Any) -> bool:
    kind = required(read_object(value, _THINKING, f"{name}."), "type", f"{name}.")
    if kind not in _THINKING_KINDS:
        raise invalid(f"{name}.type", f"is {shown(kind)}, but has to be one of {', '.join(_THINKING_KINDS)}")
    return _THINKING_KINDS[kind]


def _output_config(name: str, value: Any) -> dict[str, Any]:
    return read_object(value, _OUTPUT_CONFIG, f"{name}.")


_ONE_CALL: Final = "tool_choice.disable_parallel_tool_use"

MESSAGE_FIELDS: Final[Mapping[str, BodyField]] = {
    **GENERATION_FIELDS,
    **TEMPLATE_FIELDS,
    "messages": taken("messages", message_blocks),
    "system": taken("system", contents("text"), "", []),
    "max_tokens": taken("max_new_tokens", ceiling),
    "stop_sequences": taken("stop_strings", texts(MAX_STOPS)),
    "stop": only([], ""),
    "thinking": taken("enable_thinking", _thinking),
    "output_config": taken("output_config", _output_config),
    "output_format": taken("response_format", text_format),
    "tools": taken("tools", flat_tools("custom", "input_schema")),
    "tool_choice": taken("tool_choice", message_tool_choice),
    "mcp_servers": only([]),
    "container": only(),
    "n": only(1),
    # A prompt that is too long is refused, whatever might be cleared from it.
    "context_management": IGNORED,
    # Parameters of Anthropic's own platform.
    "cache_control": IGNORED,
    "diagnostics": IGNORED,
    "inference_geo": IGNORED,
    "speed": IGNORED,
    "user_profile_id": IGNORED,
    "workspace_id": IGNORED,
}


def parse_message(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/messages` or of `/v1/messages/count_tokens`, which has some of the same fields.

    Where the last message is the assistant's, the answer continues it.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    given = json_of(body)
    values = read_object(given, MESSAGE_FIELDS)
    if "tool_choice" in values:
        values["parallel_calls"] = not flag(_ONE_CALL, given["tool_choice"].get("disable_parallel_tool_use") or False)
    config = values.get("output_config", {})
    values["effort"] = config.get("effort", {})
    if config.get("format") is not None:
        values["response_format"] = config["format"]
    messages = values.get("messages", ())
    if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
        values["continue_final_message"] = True
    if messages and "system" in values:
        values["messages"] = (Message("system", values["system"]), *messages)
    values["separate_parts"] = True
    return generation_of(values, (conversation_of(values),))
