"""Reads tool calls between `<tool_call>` and `</tool_call>`, each a JSON object (Hermes, Qwen)."""

from __future__ import annotations

from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser
from zipmoe.model.conversation.json_call import JsonCall, ObjectState
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow, written

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"


class HermesCalls(CharacterParser):
    """Reads calls with markers around each.

    White space before a call belongs to its marker. An object that is no call becomes text, its marker included.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window = MarkerWindow((OPENING, CLOSING))
        self._space = ""
        self._count = 0
        self._call: JsonCall | None = None
        self._begun = False
        self._after_call = False

    def _take(self, character: str) -> None:
        if self._call is None:
            for item in self._window.take(character):
                self._outside(item)
            return
        progress = self._call.take(character)
        self._tell(self._call)
        if progress is ObjectState.OPEN:
            return
        if not self._begun:
            self._emit_text(OPENING + self._call.source)
        self._after_call, self._call = self._begun, None
        if progress is ObjectState.BROKEN:
            self._take(character)

    def _tell(self, call: JsonCall) -> None:
        """Emits as much of a call as is certain."""
        if not self._begun and call.begun and call.name:
            self._begun = True
            self._emit_call(self._count, call.name)
            self._count += 1
        if self._begun:
            self._emit_arguments(self._count - 1, call.arguments())

    def _outside(self, item: str | Marker) -> None:
        if isinstance(item, Marker) and item.text == OPENING:
            self._space = ""
            self._call, self._begun = JsonCall(), False
        elif isinstance(item, Marker) and self._after_call:
            self._after_call = False
            self._space = ""
        elif isinstance(item, str) and item.isspace():
            self._space += item
        else:
            self._emit_text(self._space + written(item))
            self._space = ""

    def _end(self) -> None:
        if self._call is not None:
            if not self._begun:
                self._emit_text(OPENING + self._call.source)
            return
        for character in self._window.flush():
            self._outside(character)
        if not self._count:
            self._emit_text(self._space)
