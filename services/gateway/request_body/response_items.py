"""The input of `/v1/responses`: a text, or items that are messages, reasoning, calls of functions and their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from zipmoe.client import Message, ToolCall
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, read_object, required, taken
from zipmoe.services.gateway.request_body.chat_messages import contents, role_among
from zipmoe.services.gateway.request_body.chat_tools import call_arguments
from zipmoe.services.gateway.request_body.turns import TurnCollector
from zipmoe.services.gateway.request_body.value_readers import invalid, shown, text, unsupported

_ANY_ITEM: Final[Mapping[str, BodyField]] = {
    "type": taken("type", text),
    "id": IGNORED,
    "status": IGNORED,
    "created_by": IGNORED,
}
_MESSAGE: Final[Mapping[str, BodyField]] = {
    **_ANY_ITEM,
    "role": taken("role", role_among("system", "developer", "user", "assistant")),
    "content": taken("content", contents("input_text", "output_text", "text")),
    "phase": IGNORED,
}
_REASONING: Final[Mapping[str, BodyField]] = {
    **_ANY_ITEM,
    "content": taken("content", contents("reasoning_text", "text")),
    "summary": taken("summary", contents("summary_text")),
    "encrypted_content": IGNORED,  # nothing is encrypted here
}
_CALL: Final[Mapping[str, BodyField]] = {
    **_ANY_ITEM,
    "call_id": taken("id", text),
    "name": taken("name", text),
    "arguments": taken("arguments", call_arguments),
    "caller": IGNORED,
}
_OUTPUT: Final[Mapping[str, BodyField]] = {
    **_ANY_ITEM,
    "call_id": taken("id", text),
    "output": taken("output", contents("input_text", "output_text", "text")),
    "caller": IGNORED,
}


def _parts(content: str | tuple[str, ...]) -> tuple[str, ...]:
    return (content,) if isinstance(content, str) else content


def _message(turns: TurnCollector, item: Any, where: str) -> None:
    values = read_object(item, _MESSAGE, where)
    role, content = required(values, "role", where), required(values, "content", where)
    if role == "assistant":
        turns.assistant(texts=_parts(content))
    else:
        turns.message(role, content)


def _reasoning(turns: TurnCollector, item: Any, where: str) -> None:
    values = read_object(item, _REASONING, where)
    turns.assistant(reasoning=_parts(values.get("content") or values.get("summary", ())))


def _call(turns: TurnCollector, item: Any, where: str) -> None:
    values = read_object(item, _CALL, where)
    name = required(values, "name", where)
    turns.assistant(call=ToolCall(values.get("id", ""), name, values.get("arguments", "")))


def _output(turns: TurnCollector, item: Any, where: str) -> None:
    values = read_object(item, _OUTPUT, where)
    turns.result(values.get("id", ""), required(values, "output", where))


_KINDS: Final[Mapping[str, Callable[[TurnCollector, Any, str], None]]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _call,
    "function_call_output": _output,
}


def response_input(name: str, value: Any) -> tuple[Message, ...]:
    """Reads the input of a response as messages. An item without a type is a message."""
    if isinstance(value, str):
        return (Message("user", text(name, value)),)
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a text or a list of items")
    if not value:
        raise invalid(name, "is empty, but has to have at least one item")
    turns = TurnCollector()
    for place, item in enumerate(value):
        kind = item.get("type") if isinstance(item, dict) else None
        read = _KINDS.get("message" if kind is None else str(kind))
        if read is None:
            raise unsupported(f"{name}.{place}.type", f": {shown(kind)} is none of {', '.join(_KINDS)}")
        read(turns, item, f"{name}.{place}.")
    return turns.messages
