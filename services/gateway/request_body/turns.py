"""Collects the items or blocks of a conversation into turns: all that the assistant wrote in a row is one turn."""

from __future__ import annotations

from collections.abc import Sequence

from zipmoe.client import Message, ToolCall


class TurnCollector:
    """Makes the messages of a conversation from smaller items, oldest first.

    Chat templates take reasoning, text and calls of one answer as one message of the assistant. A client sends them
    back as the separate items that the answer had.
    """

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[ToolCall] = []
        self._is_open = False
        self._names: dict[str, str] = {}

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages so far."""
        self._close()
        return tuple(self._messages)

    def assistant(self, texts: Sequence[str] = (), reasoning: Sequence[str] = (), call: ToolCall | None = None) -> None:
        """Adds to the turn of the assistant."""
        self._is_open = True
        self._texts += texts
        self._reasoning += reasoning
        if call is not None:
            self._calls.append(call)
            self._names[call.id] = call.name

    def message(self, role: str, content: str | tuple[str, ...]) -> None:
        """Adds a turn of the user or the system."""
        self._close()
        self._messages.append(Message(role, content))

    def result(self, call_id: str, content: str | tuple[str, ...]) -> None:
        """Adds the result of a call, under the name of the tool if the call is known."""
        self._close()
        name = self._names.get(call_id, "")
        self._messages.append(Message("tool", content, tool_call_id=call_id, name=name))

    def _close(self) -> None:
        if self._is_open:
            text, reasoning = "".join(self._texts), "".join(self._reasoning)
            self._messages.append(Message("assistant", text, reasoning, tuple(self._calls)))
            self._texts, self._reasoning, self._calls = [], [], []
            self._is_open = False
