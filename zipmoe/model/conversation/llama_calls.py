"""Reads tool calls that are bare JSON objects at the beginning of an answer (Llama 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser, OfferedTools
from zipmoe.model.conversation.json_call import JsonCall, ObjectState
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow

PYTHON_TAG: Final = "<|python_tag|>"


class LlamaCalls(CharacterParser):
    """Reads `{"name": ..., "parameters": {...}}`, several of them separated by semicolons or white space.

    An object is a call only if it names a tool that the request offers: answers may be JSON. `<|python_tag|>` before an
    object is left out.
    """

    def __init__(self, tools: OfferedTools) -> None:
        """Prepares for an answer; `tools` are the tools that the request offers."""
        super().__init__()
        self._tools = frozenset(tools)
        self._window = MarkerWindow((PYTHON_TAG,))
        self._count = 0
        self._held = ""
        """White space, separators and marker, which are text unless a call follows."""
        self._call: JsonCall | None = None
        self._begun = False
        self._outside: Callable[[str | Marker], None] = self._before

    def _take(self, character: str) -> None:
        if self._call is None:
            for item in self._window.take(character):
                self._outside(item)
            return
        call, progress = self._call, self._call.take(character)
        if not self._begun and call.begun and call.name in self._tools:
            self._begun, self._held = True, ""
            self._emit_call(self._count, str(call.name))
            self._count += 1
        if self._begun:
            self._emit_arguments(self._count - 1, call.arguments())
        no_call = not self._begun and call.name is not None and call.name not in self._tools
        if progress is ObjectState.OPEN and not no_call:
            return
        self._call = None
        if not self._begun:
            self._give_up(call.source)
        if progress is ObjectState.BROKEN:
            self._take(character)

    def _before(self, item: str | Marker) -> None:
        if item == "{":
            self._call, self._begun = JsonCall(), False
            self._call.take("{")
        elif isinstance(item, Marker) or item.isspace() or (item == ";" and self._count):
            self._held += "" if isinstance(item, Marker) else item
        else:
            self._give_up(item)

    def _give_up(self, text: str) -> None:
        """Takes the rest of the answer as text."""
        self._outside = self._text
        self._emit_text(self._held + text)
        self._held = ""

    def _text(self, item: str | Marker) -> None:
        self._emit_text("" if isinstance(item, Marker) else item)

    def _end(self) -> None:
        if self._call is not None:
            if not self._begun:
                self._emit_text(self._held + self._call.source)
            return
        for character in self._window.flush():
            self._outside(character)
        if not self._count:
            self._emit_text(self._held)
