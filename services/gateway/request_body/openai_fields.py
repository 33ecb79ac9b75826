"""The tables of fields of `/v1/chat/completions` and `/v1/completions`, beside those that all dialects share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zipmoe.services.gateway.request_body.answer_form import CONSTRAINT_FIELDS
from zipmoe.services.gateway.request_body.body_field import BodyField, only, read_object, taken
from zipmoe.services.gateway.request_body.chat_messages import messages
from zipmoe.services.gateway.request_body.chat_tools import effort, tool_choice, tools
from zipmoe.services.gateway.request_body.shared_fields import GENERATION_FIELDS, TEMPLATE_FIELDS
from zipmoe.services.gateway.request_body.value_readers import (
    ceiling,
    flag,
    invalid,
    prompts,
    shown,
    whole,
)

MAX_CHOICES: Final = 128
_MAX_TOP_LOGPROBS: Final = 20

_STREAM_OPTIONS: Final[Mapping[str, BodyField]] = {
    "include_usage": taken("include_usage", flag),
    "include_obfuscation": only(False),
    "continuous_usage_stats": only(False),
}


def _stream_options(name: str, value: Any) -> dict[str, Any]:
    return read_object(value, _STREAM_OPTIONS, f"{name}.")


def _listing(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list")
    return value


def _any(name: str, value: Any) -> Any:
    return value


_BOTH: Final[Mapping[str, BodyField]] = {
    **GENERATION_FIELDS,
    "stream_options": taken("stream_options", _stream_options, {}),
    "n": taken("choices", whole(1, MAX_CHOICES)),
    "max_tokens": taken("max_new_tokens", ceiling),
}

CHAT_FIELDS: Final[Mapping[str, BodyField]] = {
    **_BOTH,
    **TEMPLATE_FIELDS,
    "messages": taken("messages", messages),
    "max_completion_tokens": taken("max_completion_tokens", ceiling),
    "logprobs": taken("logprobs", flag, 0),
    "top_logprobs": taken("top_logprobs", whole(0, _MAX_TOP_LOGPROBS)),
    "add_generation_prompt": taken("add_generation_prompt", flag),
    "continue_final_message": taken("continue_final_message", flag),
    "add_special_tokens": only(False),
    "echo": only(False),
    "best_of": only(1),
    **CONSTRAINT_FIELDS,
    "tools": taken("tools", tools),
    "tool_choice": taken("tool_choice", tool_choice),
    "parallel_tool_calls": taken("parallel_calls", flag),
    "functions": taken("functions", _listing, []),
    "function_call": taken("function_call", _any, "auto"),
    "modalities": only(["text"]),
    "audio": only({}),
    "prediction": only({}),
    "reasoning_effort": taken("effort", effort),
    "verbosity": only("medium"),
    "web_search_options": only(),
    "moderation": only(),
}

COMPLETION_FIELDS: Final[Mapping[str, BodyField]] = {
    **_BOTH,
    "prompt": taken("prompts", prompts),
    "best_of": taken("best_of", whole(1, MAX_CHOICES)),
    "echo": taken("echo", flag),
    "logprobs": taken("top_logprobs", whole(0, _MAX_TOP_LOGPROBS), False),
    "suffix": only(""),
    "add_special_tokens": only(True),
    **CONSTRAINT_FIELDS,
}
