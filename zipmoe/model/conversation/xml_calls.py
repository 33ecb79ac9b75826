"""Reads tool calls in tags (Qwen3-Coder): `<function=NAME>` with `<parameter=KEY>` elements inside."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser, OfferedTools
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow, written

_OPENING: Final = "<tool_call>"
_CLOSING: Final = "</tool_call>"
_FUNCTION: Final = "<function="
_FUNCTION_END: Final = "</function>"
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
MARKERS: Final = (_OPENING, _CLOSING, _FUNCTION, _FUNCTION_END, _PARAMETER, _PARAMETER_END)


class XmlCalls(CharacterParser):
    """Reads calls whose arguments are elements. Each argument is emitted as JSON when its element is complete.

    An argument is a string if the tool's schema says so, or if its text is no JSON. White space between elements, and
    before a call, belongs to the markers.
    """

    def __init__(self, tools: OfferedTools) -> None:
        """Prepares for an answer; `tools` are the tools that the request offers."""
        super().__init__()
        self._tools = tools
        self._window = MarkerWindow(MARKERS)
        self._held = ""
        """White space and an opening marker, which are text unless a call follows."""
        self._name = self._key = self._value = ""
        self._keys = 0
        self._count = 0
        self._state: Callable[[str | Marker], None] = self._text

    def _take(self, character: str) -> None:
        for item in self._window.take(character):
            self._state(item)

    def _end(self) -> None:
        for character in self._window.flush():
            self._state(character)
        if self._state == self._in_name:
            self._emit_text(self._held + _FUNCTION + self._name)
        elif self._state == self._text and not self._count:
            self._emit_text(self._held)

    def _text(self, item: str | Marker) -> None:
        if isinstance(item, Marker) and item.text == _FUNCTION:
            self._name, self._state = "", self._in_name
        elif isinstance(item, Marker) and item.text == _CLOSING and self._count:
            self._held = ""
        elif (isinstance(item, Marker) and item.text == _OPENING) or (isinstance(item, str) and item.isspace()):
            self._held += written(item)
        else:
            self._emit_text(self._held + written(item))
            self._held = ""

    def _in_name(self, item: str | Marker) -> None:
        if item != ">":
            self._name += written(item)
            return
        self._name, self._held, self._keys = self._name.strip(), "", 0
        self._emit_call(self._count, self._name)
        self._count += 1
        self._emit_arguments(self._count - 1, "{")
        self._state = self._in_function

    def _in_function(self, item: str | Marker) -> None:
        if isinstance(item, Marker) and item.text == _PARAMETER:
            self._key, self._state = "", self._in_key
        elif isinstance(item, Marker) and item.text in (_FUNCTION_END, _CLOSING):
            self._emit_arguments(self._count - 1, "}")
            self._state = self._text

    def _in_key(self, item: str | Marker) -> None:
        if item == ">":
            self._value, self._state = "", self._in_value
        else:
            self._key += written(item)

    def _in_value(self, item: str | Marker) -> None:
        # A model may leave the closing tag out.
        if not isinstance(item, Marker) or item.text not in (_PARAMETER_END, _FUNCTION_END, _PARAMETER):
            self._value += written(item)
            return
        value = self._value.removeprefix("\n").removesuffix("\n")
        key = self._key.strip()
        begin = ", " if self._keys else ""
        self._emit_arguments(self._count - 1, f"{begin}{json.dumps(key, ensure_ascii=False)}: {self._json(key, value)}")
        self._keys += 1
        self._state = self._in_function
        if item.text != _PARAMETER_END:
            self._in_function(item)

    def _json(self, key: str, value: str) -> str:
        properties = self._tools.get(self._name, {}).get("properties")
        schema = properties.get(key) if isinstance(properties, dict) else None
        kind = schema.get("type") if isinstance(schema, dict) else None
        if kind != "string":
            try:
                return json.dumps(json.loads(value), ensure_ascii=False)
            except ValueError:
                pass
        return json.dumps(value, ensure_ascii=False)
