"""The messages of `/v1/messages`: texts, or blocks of text, thinking, tool use and tool results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from zipmoe.client import Message, ToolCall
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, read_object, required, taken
from zipmoe.services.gateway.request_body.chat_messages import contents, role_among, text_part
from zipmoe.services.gateway.request_body.chat_tools import call_arguments
from zipmoe.services.gateway.request_body.turns import TurnCollector
from zipmoe.services.gateway.request_body.value_readers import invalid, shown, text


def _any(name: str, value: Any) -> Any:
    return value


_MESSAGE: Final[Mapping[str, BodyField]] = {
    "role": taken("role", role_among("system", "user", "assistant")),
    "content": taken("content", _any),
    # Fields of answers, so that a client can send an answer back unchanged.
    "id": IGNORED,
    "type": IGNORED,
    "model": IGNORED,
    "stop_reason": IGNORED,
    "stop_sequence": IGNORED,
    "stop_details": IGNORED,
    "usage": IGNORED,
    "container": IGNORED,
    "diagnostics": IGNORED,
}
_ANY_BLOCK: Final[Mapping[str, BodyField]] = {"type": IGNORED, "cache_control": IGNORED}
_THINKING: Final[Mapping[str, BodyField]] = {
    **_ANY_BLOCK,
    "thinking": taken("thinking", text),
    "signature": IGNORED,
}
_TOOL_USE: Final[Mapping[str, BodyField]] = {
    **_ANY_BLOCK,
    "id": taken("id", text),
    "name": taken("name", text),
    "input": taken("input", call_arguments),
    "caller": IGNORED,
}
_TOOL_RESULT: Final[Mapping[str, BodyField]] = {
    **_ANY_BLOCK,
    "tool_use_id": taken("tool_use_id", text),
    "content": taken("content", contents("text")),
    # Chat templates have no place for it. The content tells the model of the error.
    "is_error": IGNORED,
}


def _thinking(turns: TurnCollector, block: Any, where: str) -> None:
    turns.assistant(reasoning=(read_object(block, _THINKING, where).get("thinking", ""),))


def _redacted(turns: TurnCollector, block: Any, where: str) -> None:
    """Leaves out thinking that only the platform of its writer can read."""
    turns.assistant()


def _tool_use(turns: TurnCollector, block: Any, where: str) -> None:
    values = read_object(block, _TOOL_USE, where)
    name = required(values, "name", where)
    turns.assistant(call=ToolCall(values.get("id", ""), name, values.get("input", "{}")))


_OF_THE_ASSISTANT: Final[Mapping[str, Callable[[TurnCollector, Any, str], None]]] = {
    "thinking": _thinking,
    "redacted_thinking": _redacted,
    "tool_use": _tool_use,
}


def _assistant(turns: TurnCollector, blocks: list[Any], where: str) -> None:
    turns.assistant()
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        read = _OF_THE_ASSISTANT.get(_kind_of(block))
        if read is None:
            turns.assistant(texts=(text_part(at, block, ("text",)),))
        else:
            read(turns, block, f"{at}.")


def _others(turns: TurnCollector, role: str, blocks: list[Any], where: str) -> None:
    texts: list[str] = []
    for place, block in enumerate(blocks):
        at = f"{where}.{place}"
        if role == "user" and _kind_of(block) == "tool_result":
            if texts:
                turns.message(role, tuple(texts))
                texts = []
            values = read_object(block, _TOOL_RESULT, f"{at}.")
            turns.result(required(values, "tool_use_id", f"{at}."), values.get("content", ""))
        else:
            texts.append(text_part(at, block, ("text",)))
    if texts or not blocks:
        turns.message(role, tuple(texts))


def _kind_of(block: Any) -> str:
    return str(block.get("type")) if isinstance(block, dict) else ""


def message_blocks(name: str, value: Any) -> tuple[Message, ...]:
    """Reads the messages of Anthropic's form. A result of a tool becomes a message of its own."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of messages")
    if not value:
        raise invalid(name, "is empty, but has to have at least one message")
    turns = TurnCollector()
    for place, message in enumerate(value):
        values = read_object(message, _MESSAGE, f"{name}.{place}.")
        role, content = (required(values, field, f"{name}.{place}.") for field in ("role", "content"))
        where = f"{name}.{place}.content"
        if not isinstance(content, list):
            written = text(where, content)
            if role == "assistant":
                turns.assistant(texts=(written,))
            else:
                turns.message(role, written)
        elif role == "assistant":
            _assistant(turns, content, where)
        else:
            _others(turns, role, content, where)
    return turns.messages
