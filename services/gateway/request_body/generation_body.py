"""Reads the body of a request for generation: JSON, the table of its fields, and the conditions between fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, NoReturn, TypeVar

from zipmoe.client import ChatPrompt, Constraint, Output, Prompt, Sampling, Stopping, ToolUse
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.answer_form import CONSTRAINTS, constraint_of
from zipmoe.services.gateway.request_body.body_field import read_object, required
from zipmoe.services.gateway.request_body.openai_fields import CHAT_FIELDS, COMPLETION_FIELDS, MAX_CHOICES
from zipmoe.services.gateway.request_body.value_readers import invalid, shown, unsupported

_COMPLETION_TOKENS: Final = 16
"""OpenAI's own default of `max_tokens` for plain completions."""

_Settings = TypeVar("_Settings", Sampling, Stopping, Output)


@dataclass(frozen=True)
class GenerationBody:
    """What a client asks for, in the terms of `zipmoe.client`.

    Attributes:
        model: the model's name.
        prompts: at least one. The answers to one prompt follow those to the prompt before.
        stream: whether the answer is streamed.
        include_usage: whether a stream ends with a piece for the usage.
        with_logprobs: whether the answer has log-probabilities.
        echo: whether the answers begin with their prompt.
        constraint: the form that the answer has to have; None for any.
    """

    model: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    stopping: Stopping
    output: Output
    stream: bool
    include_usage: bool
    with_logprobs: bool
    echo: bool = False
    constraint: Constraint | None = None


def parse_chat(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/chat/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    values = read_object(_json(body), CHAT_FIELDS)
    chosen = values.get("function_call", "none" if not values.get("functions") else "auto")
    if chosen != "none":
        refused = "functions" if values.get("functions") else "function_call"
        raise unsupported(refused, ' but with "function_call": "none"; "tools" are')
    if values.get("top_logprobs") and not values.get("logprobs"):
        raise HttpProblem(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    if "max_completion_tokens" in values:
        values["max_new_tokens"] = values["max_completion_tokens"]
    values["separate_parts"] = True
    tool_use, tool_name = values.get("tool_choice", (ToolUse.AUTO, ""))
    if tool_use in (ToolUse.REQUIRED, ToolUse.NAMED):
        _check_demanded_call(values, tool_name)
    thinking = {"enable_thinking": values["enable_thinking"]} if "enable_thinking" in values else {}
    conversation = ChatPrompt(
        required(values, "messages"),
        tools=values.get("tools", ()),
        tool_use=tool_use,
        tool_name=tool_name,
        template=values.get("template", ""),
        template_variables={**values.get("effort", {}), **thinking, **values.get("template_variables", {})},
        add_generation_prompt=values.get("add_generation_prompt"),
        continue_final_message=values.get("continue_final_message", False),
        one_call=not values.get("parallel_calls", True),
    )
    return _body(values, (conversation,), with_logprobs=values.get("logprobs", False))


def _check_demanded_call(values: Mapping[str, Any], tool_name: str) -> None:
    """Refuses a `tool_choice` that demands a call which cannot be, or another constraint beside it."""
    names = {tool["function"]["name"] for tool in values.get("tools", ())}
    if not names:
        raise HttpProblem(400, "tool_choice demands a call, but there are no tools", param="tool_choice")
    if tool_name and tool_name not in names:
        raise invalid("tool_choice", f"names {shown(tool_name)}, which is none of the tools")
    for name in CONSTRAINTS:
        if values.get(name) is not None:
            raise HttpProblem(
                400,
                f"{name} and a tool_choice that demands a call exclude each other",
                param=name,
                code="invalid_value",
            )


def parse_completion(body: bytes) -> GenerationBody:
    """Reads the body of `/v1/completions`.

    Raises:
        HttpProblem: the body is not valid, or a field asks for something that is not supported.
    """
    values = {"max_new_tokens": _COMPLETION_TOKENS, **read_object(_json(body), COMPLETION_FIELDS)}
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
    return _body(values, prompts, with_logprobs=with_logprobs, echo=echo)


def _body(
    values: Mapping[str, Any], prompts: Sequence[Prompt], *, with_logprobs: bool, echo: bool = False
) -> GenerationBody:
    stream = values.get("stream", False)
    if values.get("stream_options") and not stream:
        raise HttpProblem(400, "stream_options needs stream to be true", param="stream_options")
    most, least = values.get("max_new_tokens"), values.get("min_new_tokens", 0)
    if most is not None and least > most:
        raise invalid("min_tokens", f"is {least}, but has to be at most max_tokens, {most}")
    return GenerationBody(
        model=required(values, "model"),
        prompts=prompts,
        sampling=_settings(Sampling, values),
        stopping=_settings(Stopping, values),
        output=_settings(Output, values),
        stream=stream,
        include_usage=values.get("stream_options", {}).get("include_usage", False),
        with_logprobs=with_logprobs,
        echo=echo,
        constraint=constraint_of(values),
    )


def _settings(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Makes settings of the client from the translated values of the same names."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise HttpProblem(400, f"the body is not JSON: {reason}", code="invalid_json") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{shown(name)} is no number")
