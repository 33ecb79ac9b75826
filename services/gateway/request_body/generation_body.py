"""A request for generation in the terms of `zipmoe.client`, made from the translated fields of any dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn, TypeVar

from zipmoe.client import ChatPrompt, Constraint, Output, Prompt, Sampling, Stopping, ToolUse
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.answer_form import CONSTRAINTS, constraint_of
from zipmoe.services.gateway.request_body.body_field import required
from zipmoe.services.gateway.request_body.value_readers import invalid, shown

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
        settings: settings that the answer repeats, in the dialect's own JSON.
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
    settings: Mapping[str, Any] = field(default_factory=dict)


def conversation_of(values: Mapping[str, Any], name: str = "messages") -> ChatPrompt:
    """Returns the conversation that the translated fields of a body describe.

    Args:
        values: translated values by their common names.
        name: the dialect's name of the messages.

    Raises:
        HttpProblem: there are no messages.
    """
    if "messages" not in values:
        required(values, name)
    tool_use, tool_name = values.get("tool_choice", (ToolUse.AUTO, ""))
    if tool_use in (ToolUse.REQUIRED, ToolUse.NAMED):
        _check_demanded_call(values, tool_name)
    thinking = {"enable_thinking": values["enable_thinking"]} if "enable_thinking" in values else {}
    return ChatPrompt(
        values["messages"],
        tools=values.get("tools", ()),
        tool_use=tool_use,
        tool_name=tool_name,
        template=values.get("template", ""),
        template_variables={**values.get("effort", {}), **thinking, **values.get("template_variables", {})},
        add_generation_prompt=values.get("add_generation_prompt"),
        continue_final_message=values.get("continue_final_message", False),
        one_call=not values.get("parallel_calls", True),
    )


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


def generation_of(
    values: Mapping[str, Any],
    prompts: Sequence[Prompt],
    *,
    with_logprobs: bool = False,
    echo: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> GenerationBody:
    """Returns the generation that the translated fields of a body describe.

    Args:
        values: translated values by their common names.
        prompts: the prompts.
        with_logprobs: whether the answer has log-probabilities.
        echo: whether the answers begin with their prompt.
        settings: settings that the answer repeats.

    Raises:
        HttpProblem: the model is missing, or fields contradict each other.
    """
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
        settings=settings or {},
    )


def _settings(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Makes settings of the client from the translated values of the same names."""
    names = {each.name for each in fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def json_of(body: bytes) -> Any:
    """Returns the value of a body.

    Raises:
        HttpProblem: the body is not JSON.
    """
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise HttpProblem(400, f"the body is not JSON: {reason}", code="invalid_json") from error


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{shown(name)} is no number")
