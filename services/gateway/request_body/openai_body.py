"""Reads the bodies of `/v1/chat/completions` and `/v1/completions`: the tables, and the conditions between fields."""

from __future__ import annotations

from typing import Final

from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.body_field import read_object, required
from zipmoe.services.gateway.request_body.generation_body import (
    GenerationBody,
    conversation_of,
    generation_of,
    json_of,
)
from zipmoe.services.gateway.request_body.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, MAX_CHOICES
from zipmoe.services.gateway.request_body.value_readers import invalid, unsupported

_COMPLETION_TOKENS: Final = 16
"""OpenAI's own default of `max_tokens` for plain completions."""


def parse_chat(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/chat/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    values = read_object(json_of(body), CHAT_FIELDS)
    chosen = values.get("function_call", "none" if not values.get("functions") else "auto")
    if chosen != "none":
        refused = "functions" if values.get("functions") else "function_call"
        raise unsupported(refused, ' but with "function_call": "none"; "tools" are')
    if values.get("top_logprobs") and not values.get("logprobs"):
        raise HttpProblem(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if "max_completion_tokens" in values:
        values["max_new_tokens"] = values["max_completion_tokens"]
    values["separate_parts"] = True
    return generation_of(values, (conversation_of(values),), with_logprobs=values.get("logprobs", False))


def parse_completion(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    values = {"max_new_tokens": _COMPLETION_TOKENS, **read_object(json_of(body), COMPLETION_FIELDS)}
    if "prompts" not in values:
        required(values, "prompt")
    prompts, choices = values["prompts"], values.get("choices", 1)
    if not all(prompts):
        raise invalid("prompt", "is empty")
    best_of = values.get("best_of", choices)
    if best_of < choices:
        raise invalid("best_of", f"is {best_of}, but has to be at least n, {choices}")
    if len(prompts) * best_of > MAX_CHOICES:
        raise invalid("prompt", f"asks for {len(prompts)} x {best_of} answers, but at most {MAX_CHOICES} are given")
    with_logprobs, echo = "top_logprobs" in values, values.get("echo", False)
    values["logprobs"] = with_logprobs
    if echo:
        values["prompt_tokens"] = True
        values["prompt_logprobs"] = with_logprobs
        values["prompt_top_logprobs"] = values.get("top_logprobs", 0)
    return generation_of(values, prompts, with_logprobs=with_logprobs, echo=echo)
