"""Tools of a chat: their definitions, the choice of one, and calls that a client sends back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from zipmoe.client import ToolCall, ToolUse
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, required, taken
from zipmoe.services.gateway.request_body.value_readers import invalid, shown, text, unsupported

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_USES: Final = {"none": ToolUse.NONE, "auto": ToolUse.AUTO, "required": ToolUse.REQUIRED}


def tools(name: str, value: Any) -> tuple[Mapping[str, Any], ...]:
    """Reads definitions of functions, which reach the chat template as they are."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of tools")
    for place, tool in enumerate(value):
        where = f"{name}.{place}"
        if not isinstance(tool, dict):
            raise invalid(where, f"is {shown(tool)}, but has to be an object")
        if tool.get("type") != "function":
            raise unsupported(f"{where}.type", f": {shown(tool.get('type'))}; only functions are served")
        function = tool.get("function")
        if not (isinstance(function, dict) and isinstance(function.get("name"), str) and function["name"]):
            raise invalid(f"{where}.function", "has no name")
        if not isinstance(function.get("parameters"), dict | None):
            raise invalid(f"{where}.function.parameters", "is no JSON schema")
    return tuple(value)


def tool_choice(name: str, value: Any) -> tuple[ToolUse, str]:
    """Reads whether a tool has to be called, and the name of the one that has to be."""
    if isinstance(value, str) and value in _USES:
        return _USES[value], ""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    named = function.get("name") if isinstance(function, dict) else None
    if not (isinstance(named, str) and named):
        raise unsupported(name, f" but as one of {', '.join(_USES)}, or as an object that names a function")
    return ToolUse.NAMED, named


def effort(name: str, value: Any) -> dict[str, Any]:
    """Reads how much the model shall reason, as variables of the chat template."""
    if not (isinstance(value, str) and value in EFFORTS):
        raise invalid(name, f"is {shown(value)}, but has to be one of {', '.join(EFFORTS)}")
    return {"enable_thinking": False} if value == "none" else {"reasoning_effort": value}


def _arguments(name: str, value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else text(name, value)


_FUNCTION_FIELDS: Final[Mapping[str, BodyField]] = {
    "name": taken("name", text),
    "arguments": taken("arguments", _arguments),
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
