"""Reads the bodies of `/tokenize` and `/detokenize`, in the forms of vLLM and of llama.cpp's server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from zipmoe.client import Prompt
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, required, taken
from zipmoe.services.gateway.request_body.chat_messages import messages
from zipmoe.services.gateway.request_body.chat_tools import tool_choice, tools
from zipmoe.services.gateway.request_body.generation_body import conversation_of, json_of
from zipmoe.services.gateway.request_body.shared_fields import TEMPLATE_FIELDS
from zipmoe.services.gateway.request_body.value_readers import flag, text, token_ids

_SOURCES: Final = ("prompt", "content", "messages")

_TOKENIZE_FIELDS: Final[Mapping[str, BodyField]] = {
    **TEMPLATE_FIELDS,
    "model": taken("model", text),
    "prompt": taken("prompt", text),
    "content": taken("content", text),
    "messages": taken("messages", messages),
    "add_special_tokens": taken("special", flag),
    "add_special": taken("special", flag),
    "parse_special": only(True),
    "add_generation_prompt": taken("add_generation_prompt", flag),
    "continue_final_message": taken("continue_final_message", flag),
    "tools": taken("tools", tools),
    "tool_choice": taken("tool_choice", tool_choice),
    "return_token_strs": taken("with_strings", flag),
    "with_pieces": taken("with_pieces", flag),
    "user": IGNORED,
}
_DETOKENIZE_FIELDS: Final[Mapping[str, BodyField]] = {
    "model": taken("model", text),
    "tokens": taken("tokens", token_ids),
    "user": IGNORED,
}


@dataclass(frozen=True)
class TokenizeBody:
    """A prompt that a client wants as token ids.

    Attributes:
        model: the model's name; None for any.
        prompt: the prompt.
        add_special_tokens: whether a text gets the tokenizer's special tokens.
        with_strings: whether the answer also has the text of each token, as vLLM's does.
        with_pieces: whether each token comes with its text, as llama.cpp's do.
    """

    model: str | None
    prompt: Prompt
    add_special_tokens: bool
    with_strings: bool
    with_pieces: bool


@dataclass(frozen=True)
class DetokenizeBody:
    """Token ids that a client wants as text.

    Attributes:
        model: the model's name; None for any.
        token_ids: the ids.
    """

    model: str | None
    token_ids: tuple[int, ...]


def parse_tokenize(body: bytes) -> TokenizeBody:
    """Reads the body of `/tokenize`.

    A `prompt` gets special tokens unless the client says no, a `content` only if the client says so: these are the
    defaults of vLLM and of llama.cpp.

    Raises:
        HttpProblem: the body is not valid, or has not exactly one prompt.
    """
    values = read_object(json_of(body), _TOKENIZE_FIELDS)
    given = [name for name in _SOURCES if name in values]
    if len(given) != 1:
        problem = f"{' and '.join(given)} exclude each other" if given else f"give one of {', '.join(_SOURCES)}"
        raise HttpProblem(400, problem, param=given[1] if given else "prompt", code="invalid_value")
    (source,) = given
    prompt: Any = conversation_of(values) if source == "messages" else values[source]
    return TokenizeBody(
        model=values.get("model"),
        prompt=prompt,
        add_special_tokens=values.get("special", source == "prompt"),
        with_strings=values.get("with_strings", False),
        with_pieces=values.get("with_pieces", False),
    )


def parse_detokenize(body: bytes) -> DetokenizeBody:
    """Reads the body of `/detokenize`.

    Raises:
        HttpProblem: the body is not valid.
    """
    values = read_object(json_of(body), _DETOKENIZE_FIELDS)
    return DetokenizeBody(values.get("model"), required(values, "tokens"))
