"""The table of fields that the requests of all dialects share: type, range, values that change nothing, translation.

`into` is the name of an attribute of `zipmoe.client`'s Sampling, Stopping, Output or ChatPrompt, or a name that
`generation_body` knows. Absent fields take the values of the model's generation_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, taken
from zipmoe.services.gateway.request_body.other_servers import OTHER_SERVERS
from zipmoe.services.gateway.request_body.value_readers import (
    biases,
    flag,
    invalid,
    kept_tokens,
    number,
    seed,
    shown,
    text,
    texts,
    token_ids,
    whole,
)

MAX_STOPS: Final = 16
_LARGEST: Final = 2**31


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

GENERATION_FIELDS: Final[Mapping[str, BodyField]] = {
    **OTHER_SERVERS,
    **_PLATFORM,
    "model": taken("model", text),
    "stream": taken("stream", flag),
    "temperature": taken("temperature", number(0, math.inf)),
    "top_p": taken("top_p", number(0, 1, above=True)),
    "top_k": taken("top_k", kept_tokens),
    "min_p": taken("min_p", number(0, 1)),
    "repetition_penalty": taken("repetition_penalty", number(0, math.inf, above=True)),
    "presence_penalty": taken("presence_penalty", number(-2, 2)),
    "frequency_penalty": taken("frequency_penalty", number(-2, 2)),
    "logit_bias": taken("logit_bias", biases, []),
    "seed": taken("seed", seed),
    "min_tokens": taken("min_new_tokens", whole(0, _LARGEST)),
    "stop": taken("stop_strings", texts(MAX_STOPS)),
    "stop_token_ids": taken("stop_token_ids", token_ids),
    "ignore_eos": taken("ignore_eos", flag),
    "skip_special_tokens": taken("skip_special_tokens", flag),
}
"""Fields of every generation."""

TEMPLATE_FIELDS: Final[Mapping[str, BodyField]] = {
    "chat_template": taken("template", text),
    "chat_template_kwargs": taken("template_variables", _variables),
    "enable_thinking": taken("enable_thinking", flag),
}
"""Fields of every conversation: settings of the chat template."""
