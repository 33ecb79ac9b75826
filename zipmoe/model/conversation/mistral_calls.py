"""Reads tool calls after `[TOOL_CALLS]` (Mistral): a list of JSON objects, or a name and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser
from zipmoe.model.conversation.json_call import JsonCall, JsonNesting, ObjectState
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow, written

CALLS: Final = "[TOOL_CALLS]"
ID: Final = "[CALL_ID]"
ARGUMENTS: Final = "[ARGS]"


class MistralCalls(CharacterParser):
    """Reads `[TOOL_CALLS] [{"name": ..., "arguments": ...}, ...]` and `[TOOL_CALLS]name[ARGS]{...}`, repeated.

    White space around calls belongs to the markers. Text after a marker that is no call becomes text.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window = MarkerWindow((CALLS, ID, ARGUMENTS))
        self._count = 0
        self._space = ""
        self._name = ""
        self._call: JsonCall | None = None
        self._begun = False
        self._nesting: JsonNesting | None = None
        self._outside: Callable[[str | Marker], None] = self._text

    def _take(self, character: str) -> None:
        if self._call is not None:
            self._object(self._call, character)
        elif self._nesting is not None:
            self._emit_arguments(self._count - 1, character)
            if self._nesting.take(character):
                self._nesting, self._outside = None, self._text
        else:
            for item in self._window.take(character):
                self._outside(item)

    def _object(self, call: JsonCall, character: str) -> None:
        progress = call.take(character)
        if not self._begun and call.begun and call.name:
            self._begin(call.name)
        if self._begun:
            self._emit_arguments(self._count - 1, call.arguments())
        if progress is ObjectState.OPEN:
            return
        if not self._begun:
            self._emit_text(CALLS + call.source)
        self._call = None
        if progress is ObjectState.BROKEN:
            self._outside = self._text
            self._take(character)

    def _begin(self, name: str) -> None:
        self._begun = True
        self._emit_call(self._count, name)
        self._count += 1

    def _text(self, item: str | Marker) -> None:
        if isinstance(item, Marker) and item.text == CALLS:
            self._space, self._name = "", ""
            self._outside = self._after_marker
        elif isinstance(item, str) and item.isspace():
            self._space += item
        else:
            self._emit_text(self._space + written(item))
            self._space = ""

    def _after_marker(self, item: str | Marker) -> None:
        if item == "[":
            self._outside = self._list
        elif item == "{":
            self._outside = self._text
            self._begin_object()
        elif not (isinstance(item, str) and item.isspace()):
            self._outside = self._in_name
            self._in_name(item)

    def _list(self, item: str | Marker) -> None:
        if item == "{":
            self._begin_object()
        elif item == "]":
            self._outside = self._text
        elif not (isinstance(item, str) and (item.isspace() or item == ",")):
            self._outside = self._text
            self._text(item)

    def _begin_object(self) -> None:
        self._call, self._begun = JsonCall(), False
        self._call.take("{")

    def _in_name(self, item: str | Marker) -> None:
        if item == "{":
            self._begin(self._name.strip())
            self._nesting = JsonNesting()
            self._emit_arguments(self._count - 1, "{")
        elif isinstance(item, str):
            self._name += item
        elif item.text == ID:
            self._outside = self._in_id
        elif item.text == CALLS:
            self._emit_text(CALLS + self._name)
            self._text(item)

    def _in_id(self, item: str | Marker) -> None:
        """Passes over the call's id: the router gives ids of its own."""
        if item == "{" or isinstance(item, Marker):
            self._outside = self._in_name
            self._in_name(item)

    def _end(self) -> None:
        if self._call is not None:
            if not self._begun:
                self._emit_text(CALLS + self._call.source)
            return
        for character in self._window.flush():
            self._outside(character)
        if self._outside == self._in_name or self._outside == self._after_marker:
            self._emit_text(CALLS + self._name)
        elif not self._count:
            self._emit_text(self._space)
