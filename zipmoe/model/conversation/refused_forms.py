"""Other forms of a conversation, for templates that refuse its own form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from zipmoe.model.conversation.chat_request import Turn

_SYSTEM_ROLES: Final = frozenset({"system", "developer"})
_BETWEEN: Final = "\n\n"


def merged_system(turns: Sequence[Turn]) -> list[Turn] | None:
    """Returns the turns with the system messages put before the first user turn; None if there is no system message."""
    system = [turn["content"] for turn in turns if turn["role"] in _SYSTEM_ROLES]
    if not system:
        return None
    others = [turn for turn in turns if turn["role"] not in _SYSTEM_ROLES]
    place = next((index for index, turn in enumerate(others) if turn["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": _joined(system)}, *others]
    first = others[place]
    return [*others[:place], {**first, "content": _joined([*system, first["content"]])}, *others[place + 1 :]]


def _joined(contents: Sequence[Any]) -> Any:
    """Joins contents, all texts or all lists of parts, with an empty line between two."""
    if all(isinstance(content, str) for content in contents):
        return _BETWEEN.join(contents)
    parts: list[Any] = []
    for content in contents:
        between = [{"type": "text", "text": _BETWEEN}] if parts else []
        parts += [*between, *([{"type": "text", "text": content}] if isinstance(content, str) else content)]
    return parts


def with_written_arguments(turns: Sequence[Turn]) -> list[Turn] | None:
    """Returns the turns with the arguments of their tool calls as JSON text; None if there is no tool call.

    Most templates take arguments as an object. Some join them to text.
    """
    if not any(turn.get("tool_calls") for turn in turns):
        return None
    return [
        {**turn, "tool_calls": [_written(call) for call in turn["tool_calls"]]} if turn.get("tool_calls") else turn
        for turn in turns
    ]


def _written(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
