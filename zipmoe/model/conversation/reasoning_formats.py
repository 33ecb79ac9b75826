"""Markers around the reasoning of a model, as a table, and the parser that finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from zipmoe.model.conversation.answer_pieces import CharacterParser
from zipmoe.model.conversation.marker_window import Marker, MarkerWindow, written


@dataclass(frozen=True)
class ReasoningFormat:
    """A pair of markers around reasoning at the beginning of an answer.

    Attributes:
        name: name of the row.
        opening: marker before the reasoning. Some chat templates write it themselves, as the end of the prompt.
        closing: marker after it.
    """

    name: str
    opening: str
    closing: str

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers, which are special tokens in some tokenizers."""
        return self.opening, self.closing


#: The first row whose closing marker stands in the chat template or is an added token holds for a model.
REASONING_FORMATS: Final = (
    ReasoningFormat("think", "<think>", "</think>"),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
    ReasoningFormat("command", "<|START_THINKING|>", "<|END_THINKING|>"),
)


class ReasoningParser(CharacterParser):
    """Separates reasoning at the beginning of an answer from the text after it.

    White space around the reasoning and line feeds before the text belong to the markers. A marker further on in the
    text is text: answers may explain markers.
    """

    def __init__(self, markers: ReasoningFormat, *, begins_inside: bool) -> None:
        """Prepares for an answer.

        Args:
            markers: the model's markers.
            begins_inside: whether the prompt ends with the opening marker, so that the answer begins as reasoning.
        """
        super().__init__()
        self._opening = markers.opening
        self._begins_inside = begins_inside
        self._window = MarkerWindow(markers.markers)
        self._space = ""
        self._had_reasoning = False
        self._state: Callable[[str | Marker], None] = self._before

    def _take(self, character: str) -> None:
        if self._state == self._text:
            self._emit_text(character)
            return
        for item in self._window.take(character):
            self._state(item)

    def _end(self) -> None:
        for character in self._window.flush():
            self._state(character)
        if self._state == self._before and not self._begins_inside:
            self._emit_text(self._space)

    def _before(self, item: str | Marker) -> None:
        if isinstance(item, str) and item.isspace():
            self._space += item
        elif isinstance(item, Marker) and item.text == self._opening:
            self._space = ""
            self._state = self._inside
        elif self._begins_inside:
            self._space = ""
            self._state = self._inside
            self._inside(item)
        else:
            self._emit_text(self._space)
            self._state = self._text
            self._text(item)

    def _inside(self, item: str | Marker) -> None:
        if not self._had_reasoning and isinstance(item, str) and item.isspace():
            return
        if isinstance(item, Marker) and item.text != self._opening:
            self._state = self._seam
        elif isinstance(item, str) and item.isspace():
            self._space += item
        else:
            self._emit_reasoning(self._space + written(item))
            self._space, self._had_reasoning = "", True

    def _seam(self, item: str | Marker) -> None:
        if item not in ("\n", "\r"):
            self._state = self._text
            self._text(item)

    def _text(self, item: str | Marker) -> None:
        self._emit_text(written(item))
