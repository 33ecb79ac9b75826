"""Reads the body of `/v1/responses`. No response is kept, so a conversation always comes as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zipmoe.client import Message
from zipmoe.services.gateway.request_body.answer_form import text_format
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, taken
from zipmoe.services.gateway.request_body.chat_tools import effort, flat_tools, response_tool_choice
from zipmoe.services.gateway.request_body.generation_body import (
    GenerationBody,
    conversation_of,
    generation_of,
    json_of,
)
from zipmoe.services.gateway.request_body.response_items import response_input
from zipmoe.services.gateway.request_body.shared_fields import GENERATION_FIELDS, TEMPLATE_FIELDS
from zipmoe.services.gateway.request_body.value_readers import ceiling, flag, invalid, shown, text, unsupported

_LOGPROBS: Final = "message.output_text.logprobs"

_REASONING: Final[Mapping[str, BodyField]] = {
    "effort": taken("effort", effort),
    # Reasoning is shown as the model wrote it.
    "summary": IGNORED,
    "generate_summary": IGNORED,
    "context": only("auto", "all_turns"),
    "mode": only("standard"),
}
_TEXT: Final[Mapping[str, BodyField]] = {
    "format": taken("format", text_format),
    "verbosity": only("medium"),
}


def _reasoning(name: str, value: Any) -> dict[str, Any]:
    variables: dict[str, Any] = read_object(value, _REASONING, f"{name}.").get("effort", {})
    return variables


def _text(name: str, value: Any) -> Any:
    return read_object(value, _TEXT, f"{name}.").get("format")


def _include(name: str, value: Any) -> None:
    """Checks the names of additional output; all but log-probabilities belong to tools of OpenAI's platform."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of names")
    if _LOGPROBS in value:
        raise unsupported(name, f": {_LOGPROBS}; /v1/chat/completions has log-probabilities")


RESPONSE_FIELDS: Final[Mapping[str, BodyField]] = {
    **GENERATION_FIELDS,
    **TEMPLATE_FIELDS,
    "input": taken("messages", response_input),
    "instructions": taken("instructions", text, ""),
    "max_output_tokens": taken("max_new_tokens", ceiling),
    "text": taken("response_format", _text),
    "reasoning": taken("effort", _reasoning),
    "tools": taken("tools", flat_tools("function", "parameters")),
    "tool_choice": taken("tool_choice", response_tool_choice),
    "parallel_tool_calls": taken("parallel_calls", flag),
    "include": taken("include", _include),
    "stream_options": only({}, {"include_obfuscation": False}),
    # A prompt that is too long is refused, whatever might be dropped from it.
    "truncation": IGNORED,
    "context_management": IGNORED,
    "previous_response_id": only(""),
    "conversation": only(),
    "background": only(False),
    "prompt": only(),
    "max_tool_calls": IGNORED,  # of tools of the platform
    "top_logprobs": only(0),
    "n": only(1),
    "moderation": only(),
}

_REPEATED: Final[Mapping[str, Any]] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""The settings that a response repeats, and their values where a request leaves them out."""

_ALWAYS: Final[Mapping[str, Any]] = {"store": False, "background": False, "previous_response_id": None}


def parse_response(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/responses`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    given = json_of(body)
    values = read_object(given, RESPONSE_FIELDS)
    if "messages" in values and "instructions" in values:
        values["messages"] = (Message("system", values["instructions"]), *values["messages"])
    values["separate_parts"] = True
    repeated = {name: default if given.get(name) is None else given[name] for name, default in _REPEATED.items()}
    return generation_of(values, (conversation_of(values, "input"),), settings={**repeated, **_ALWAYS})
