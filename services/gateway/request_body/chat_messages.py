"""The messages of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from zipmoe.client import Message
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, only, read_object, required, taken
from zipmoe.services.gateway.request_body.chat_tools import tool_calls
from zipmoe.services.gateway.request_body.value_readers import Reader, invalid, shown, text, unsupported

# OpenAI's newer models call the role of instructions "developer"; most chat templates do not know it.
_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


def role_among(*roles: str) -> Reader:
    """Reads a role that is among some, in the terms of chat templates."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in roles:
            raise unsupported(name, f": {shown(value)} is none of {', '.join(roles)}")
        return _ROLES[value]

    return read


_PART_FIELDS: Final[Mapping[str, BodyField]] = {
    "type": taken("type", text),
    "text": taken("text", text),
    "cache_control": IGNORED,
    "annotations": IGNORED,
    "citations": IGNORED,
    "logprobs": IGNORED,
}


def contents(*kinds: str) -> Reader:
    """Reads a text, or a list of parts. `kinds` are the types that a part may have, all of them texts."""

    def read(name: str, value: Any) -> str | tuple[str, ...]:
        if not isinstance(value, list):
            return text(name, value)
        return tuple(text_part(f"{name}.{place}", part, kinds) for place, part in enumerate(value))

    return read


def text_part(name: str, part: Any, kinds: Sequence[str]) -> str:
    """Reads a part of a content. Its type has to be among `kinds`; without a type it is of the first."""
    kind = part.get("type", kinds[0]) if isinstance(part, dict) else kinds[0]
    if kind not in kinds:
        raise unsupported(name, f": parts of type {shown(kind)}; only text is served, of any model")
    written: str = required(read_object(part, _PART_FIELDS, f"{name}."), "text", f"{name}.")
    return written


# Fields of answers, so that a client can send an answer back unchanged, and fields that change nothing here.
_MESSAGE_FIELDS: Final[Mapping[str, BodyField]] = {
    "role": taken("role", role_among(*_ROLES)),
    "content": taken("content", contents("text")),
    "name": taken("name", text),
    "reasoning_content": taken("reasoning", text),
    "reasoning": taken("reasoning", text),
    "reasoning_details": IGNORED,
    "cache_control": IGNORED,
    "annotations": IGNORED,
    "id": IGNORED,
    "refusal": only(""),
    "tool_calls": taken("tool_calls", tool_calls, []),
    "tool_call_id": taken("tool_call_id", text),
    "function_call": only({}),
    "audio": only({}),
    "prefix": only(False),
}


def messages(name: str, value: Any) -> tuple[Message, ...]:
    """Reads the messages of a chat. An assistant's content may be null or missing."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of messages")
    if not value:
        raise invalid(name, "is empty, but has to have at least one message")
    read = []
    for place, message in enumerate(value):
        where = f"{name}.{place}."
        values = read_object(message, _MESSAGE_FIELDS, where)
        role = required(values, "role", where)
        content = values.get("content", "") if role == "assistant" else required(values, "content", where)
        calls = values.get("tool_calls", ())
        if calls and role != "assistant":
            raise invalid(f"{where}tool_calls", "is set, but only a message of the assistant may call tools")
        read.append(
            Message(
                role,
                content,
                values.get("reasoning", ""),
                calls,
                values.get("tool_call_id", ""),
                values.get("name", ""),
            )
        )
    return tuple(read)
