"""Tools of a chat: their definitions, the choice of one, and calls that a client sends back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from zipmoe.client import ToolCall, ToolUse
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, required, taken
from zipmoe.services.gateway.request_body.value_readers import Reader, invalid, shown, text, unsupported

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_USES: Final = {"none": ToolUse.NONE, "auto": ToolUse.AUTO, "required": ToolUse.REQUIRED}

_MESSAGE_USES: Final = {"none": ToolUse.NONE, "auto": ToolUse.AUTO, "any": ToolUse.REQUIRED}


def tools(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Reads definitions of functions, which reach the chat template as they are."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of tools")
    for place, tool in enumerate(value):
        where = f"{name}.{place}"
        _check_kind(where, tool, "function")
        _check_function(f"{where}.function", tool.get("function"), "parameters")
    return tuple(value)


def flat_tools(kind: str, parameters: str) -> Reader:
    """Reads definitions of tools that are functions themselves, and puts them into the form of chats.

    Args:
        kind: the type that a tool may have. Others, which run on a platform, are refused by name.
        parameters: the field with the JSON schema of the parameters.
    """

    def read(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
        if not isinstance(value, list):
            raise invalid(name, f"is {shown(value)}, but has to be a list of tools")
        read_all = []
        for place, tool in enumerate(value):
            _check_kind(f"{name}.{place}", tool, kind)
            _check_function(f"{name}.{place}", tool, parameters)
            function = {
                "name": tool["name"],
                "description": tool.get("description"),
                "parameters": tool.get(parameters),
            }
            given = {field: each for field, each in function.items() if each is not None}
            read_all.append({"type": "function", "function": given})
        return tuple(read_all)

    return read


def _check_kind(where: str, tool: Any, kind: str) -> None:
    if not isinstance(tool, dict):
        raise invalid(where, f"is {shown(tool)}, but has to be an object")
    given = tool.get("type")
    if given != kind and (given is not None or kind == "function"):
        raise unsupported(f"{where}.type", f": {shown(given)}; only functions are served")


def _check_function(where: str, function: Any, parameters: str) -> None:
    if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
        raise invalid(where, "has no name")
    if not isinstance(function.get(parameters), dict | None):
        raise invalid(f"{where}.{parameters}", "is no JSON schema")


def tool_choice(name: str, value: Any) -> tuple[ToolUse, str]:
    """Reads whether a tool has to be called, and the name of the one that has to be."""
    if isinstance(value, str) and value in _USES:
        return _USES[value], ""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    return ToolUse.NAMED, _named(name, function)


def response_tool_choice(name: str, value: Any) -> tuple[ToolUse, str]:
    """Reads the same where the object of a choice has the function's name itself, as in `/v1/responses`."""
    if isinstance(value, str) and value in _USES:
        return _USES[value], ""
    return ToolUse.NAMED, _named(name, value if isinstance(value, dict) and value.get("type") == "function" else None)


def message_tool_choice(name: str, value: Any) -> tuple[ToolUse, str]:
    """Reads the same in Anthropic's form."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "tool":
        return ToolUse.NAMED, _named(name, value)
    if not isinstance(kind, str) or kind not in _MESSAGE_USES:
        raise unsupported(name, f" but as an object of the type {', '.join(_MESSAGE_USES)} or tool")
    return _MESSAGE_USES[kind], ""


def _named(name: str, function: Any) -> str:
    named = function.get("name") if isinstance(function, dict) else None
    if not (isinstance(named, str) and named):
        raise unsupported(name, f" but as one of {', '.join(_USES)}, or as an object that names a function")
    return named


def effort(name: str, value: Any) -> dict[str, Any]:
    """Reads how much the model shall reason, as variables of the chat template."""
    if not (isinstance(value, str) and value in EFFORTS):
        raise invalid(name, f"is {shown(value)}, but has to be one of {', '.join(EFFORTS)}")
    return {"enable_thinking": False} if value == "none" else {"reasoning_effort": value}


def call_arguments(name: str, value: Any) -> str:
    """Reads arguments of a call, JSON text or an object, as JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else text(name, value)


_FUNCTION_FIELDS: Final[Mapping[str, BodyField]] = {
    "name": taken("name", text),
    "arguments": taken("arguments", call_arguments),
}
_CALL_FIELDS: Final[Mapping[str, BodyField]] = {
    "id": taken("id", text),
    "type": only("function"),
    "index": IGNORED,
    "function": taken("function", lambda name, value: read_object(value, _FUNCTION_FIELDS, f"{name}.")),
}


def tool_calls(name: str, value: Any) -> tuple[ToolCall, ...]:
    """Reads the calls of a message of the assistant."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of calls")
    calls = []
    for place, call in enumerate(value):
        where = f"{name}.{place}."
        values = read_object(call, _CALL_FIELDS, where)
        function = required(values, "function", where)
        called = required(function, "name", f"{where}function.")
        calls.append(ToolCall(values.get("id", ""), called, function.get("arguments", "")))
    return tuple(calls)
