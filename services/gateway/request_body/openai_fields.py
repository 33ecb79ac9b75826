"""The tables of fields of OpenAI's requests: type, range, values that change nothing, and how each is translated.

`into` is the name of an attribute of `zipmoe.client`'s Sampling, Stopping, Output or ChatPrompt, or a name that
`generation_body` knows. Absent fields take the values of the model's generation_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from zipmoe.services.gateway.request_body.answer_form import CONSTRAINT_FIELDS
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, taken
from zipmoe.services.gateway.request_body.chat_messages import messages
from zipmoe.services.gateway.request_body.chat_tools import effort, tool_choice, tools
from zipmoe.services.gateway.request_body.other_servers import OTHER_SERVERS
from zipmoe.services.gateway.request_body.value_readers import (
    biases,
    ceiling,
    flag,
    invalid,
    kept_tokens,
    number,
    prompts,
    seed,
    shown,
    text,
    texts,
    token_ids,
    whole,
)

MAX_CHOICES: Final = 128
_MAX_STOPS: Final = 16
_MAX_TOP_LOGPROBS: Final = 20
_LARGEST: Final = 2**31

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


def _variables(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(name, f"is {shown(value)}, but has to be an object")
    return value


# Parameters of OpenAI's own platform, of which no value changes the answer.
_PLATFORM: Final = dict.fromkeys(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
    ),
    IGNORED,
)

_BOTH: Final[Mapping[str, BodyField]] = {
    **OTHER_SERVERS,
    **_PLATFORM,
    "model": taken("model", text),
    "stream": taken("stream", flag),
    "stream_options": taken("stream_options", _stream_options, {}),
    "temperature": taken("temperature", number(0, math.inf)),
    "top_p": taken("top_p", number(0, 1, above=True)),
    "top_k": taken("top_k", kept_tokens),
    "min_p": taken("min_p", number(0, 1)),
    "repetition_penalty": taken("repetition_penalty", number(0, math.inf, above=True)),
    "presence_penalty": taken("presence_penalty", number(-2, 2)),
    "frequency_penalty": taken("frequency_penalty", number(-2, 2)),
    "logit_bias": taken("logit_bias", biases, []),
    "seed": taken("seed", seed),
    "n": taken("choices", whole(1, MAX_CHOICES)),
    "max_tokens": taken("max_new_tokens", ceiling),
    "min_tokens": taken("min_new_tokens", whole(0, _LARGEST)),
    "stop": taken("stop_strings", texts(_MAX_STOPS)),
    "stop_token_ids": taken("stop_token_ids", token_ids),
    "ignore_eos": taken("ignore_eos", flag),
    "skip_special_tokens": taken("skip_special_tokens", flag),
}

CHAT_FIELDS: Final[Mapping[str, BodyField]] = {
    **_BOTH,
    "messages": taken("messages", messages),
    "max_completion_tokens": taken("max_completion_tokens", ceiling),
    "logprobs": taken("logprobs", flag, 0),
    "top_logprobs": taken("top_logprobs", whole(0, _MAX_TOP_LOGPROBS)),
    "add_generation_prompt": taken("add_generation_prompt", flag),
    "continue_final_message": taken("continue_final_message", flag),
    "chat_template_kwargs": taken("template_variables", _variables),
    "add_special_tokens": only(False),
    "echo": only(False),
    "best_of": only(1),
    **CONSTRAINT_FIELDS,
    "tools": taken("tools", tools),
    "tool_choice": taken("tool_choice", tool_choice),
    "parallel_tool_calls": taken("parallel_calls", flag),
    "chat_template": taken("template", text),
    "enable_thinking": taken("enable_thinking", flag),
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
