"""Reads answers in channels (harmony, gpt-oss): reasoning, tool calls and text, each message with a header."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
CONSTRAIN: Final = "<|constrain|>"
MESSAGE: Final = "<|message|>"
END: Final = "<|end|>"
RETURN: Final = "<|return|>"
CALL: Final = "<|call|>"
MARKERS: Final = (START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL)

_ENDS: Final = (END, RETURN, CALL, START, CHANNEL)
_REASONING_CHANNEL: Final = "analysis"
_FUNCTIONS: Final = "functions."
_RECIPIENT: Final = re.compile(r"\bto=([^\s<]+)")


class HarmonyChannels(CharacterParser):
    """Reads messages `<|channel|>NAME to=RECIPIENT<|message|>...`, which end with a marker.

    The channel `analysis` is reasoning, a message to a recipient is a tool call, everything else is text. Headers never
    become text. An answer that does not begin with a header is text up to its first marker. Two messages of the same
    kind are joined by a line feed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window = MarkerWindow(MARKERS)
        self._header = ""
        self._calls = 0
        self._had_body = False
        self._earlier: set[Callable[[str], None]] = set()
        """Kinds of text of which a message has ended, so that the next is set off."""
        self._body: Callable[[str], None] = self._emit_text
        self._state: Callable[[str | Marker], None] = self._before

    def _take(self, character: str) -> None:
        for item in self._window.take(character):
            self._state(item)

    def _end(self) -> None:
        for character in self._window.flush():
            self._state(character)
        if self._state == self._before:
            self._emit_text(self._header)
        elif self._state == self._in_body:
            self._end_body()

    def _before(self, item: str | Marker) -> None:
        """Takes the beginning of the answer, which goes on behind `<|start|>assistant` of the prompt."""
        if isinstance(item, Marker):
            self._state = self._in_header
            self._in_header(item)
        else:
            self._header += item
            if not " to=".startswith(self._header[:4]):
                self._begin_body(self._emit_text)
                for character in self._header:
                    self._in_body(character)

    def _in_header(self, item: str | Marker) -> None:
        if isinstance(item, str):
            self._header += item
        elif item.text == MESSAGE:
            self._begin_message()
        elif item.text in (CHANNEL, CONSTRAIN):
            self._header += item.text
        else:
            self._header = ""

    def _begin_message(self) -> None:
        header = self._header
        recipient = _RECIPIENT.search(header)
        channel = header.partition(CHANNEL)[2].split(maxsplit=1)
        if recipient is not None:
            self._emit_call(self._calls, recipient[1].removeprefix(_FUNCTIONS))
            self._calls += 1
            self._begin_body(self._argument)
        else:
            is_reasoning = bool(channel) and channel[0].partition("<")[0] == _REASONING_CHANNEL
            self._begin_body(self._emit_reasoning if is_reasoning else self._emit_text)

    def _begin_body(self, body: Callable[[str], None]) -> None:
        self._state, self._body, self._had_body = self._in_body, body, False

    def _argument(self, text: str) -> None:
        self._emit_arguments(self._calls - 1, text)

    def _in_body(self, item: str | Marker) -> None:
        if isinstance(item, Marker):
            if item.text in _ENDS:
                self._end_body()
                self._header = item.text if item.text == CHANNEL else ""
                self._state = self._in_header
            return
        if not self._had_body and self._body in self._earlier:
            self._body("\n")
        self._had_body = True
        self._body(item)

    def _end_body(self) -> None:
        if self._body != self._argument:
            self._earlier |= {self._body} if self._had_body else set()
        elif not self._had_body:
            self._argument("{}")
