"""Pieces of an answer while it arrives: text, reasoning and tool calls; the contract of the parsers that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class TextPiece:
    """Text for the reader of the answer."""

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """Text in which the model reasons before it answers."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """The beginning of a tool call. Calls of an answer count from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A part of a call's arguments. The parts of a call add up to JSON text, if the model has written valid JSON."""

    index: int
    text: str


OfferedTools = Mapping[str, Mapping[str, Any]]
"""The tools that a request offers: the JSON schema of each one's arguments, by name."""

AnswerPiece = TextPiece | ReasoningPiece | CallBegun | CallArguments


class AnswerParser(Protocol):
    """Splits an answer into pieces. The pieces, joined by kind, do not depend on the cuts between deltas."""

    def feed(self, text: str) -> list[AnswerPiece]:
        """Takes the next text of the answer and returns the pieces that are certain."""
        ...

    def finish(self) -> list[AnswerPiece]:
        """Returns the pieces of the text that was held back; the answer ends here, be it complete or cut off."""
        ...


class CharacterParser(ABC):
    """Base of the parsers: takes one character at a time."""

    def __init__(self) -> None:
        self._pieces: list[AnswerPiece] = []

    def feed(self, text: str) -> list[AnswerPiece]:
        """Takes the next text of the answer and returns the pieces that are certain."""
        for character in text:
            self._take(character)
        return self._drained()

    def finish(self) -> list[AnswerPiece]:
        """Returns the pieces of the text that was held back."""
        self._end()
        return self._drained()

    @abstractmethod
    def _take(self, character: str) -> None:
        """Takes the next character."""

    @abstractmethod
    def _end(self) -> None:
        """Emits the text that was held back."""

    def _emit_text(self, text: str) -> None:
        if text:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, TextPiece):
                self._pieces[-1] = TextPiece(last.text + text)
            else:
                self._pieces.append(TextPiece(text))

    def _emit_reasoning(self, text: str) -> None:
        if text:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, ReasoningPiece):
                self._pieces[-1] = ReasoningPiece(last.text + text)
            else:
                self._pieces.append(ReasoningPiece(text))

    def _emit_call(self, index: int, name: str) -> None:
        self._pieces.append(CallBegun(index, name))

    def _emit_arguments(self, index: int, text: str) -> None:
        if text:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, CallArguments) and last.index == index:
                self._pieces[-1] = CallArguments(index, last.text + text)
            else:
                self._pieces.append(CallArguments(index, text))

    def _drained(self) -> list[AnswerPiece]:
        pieces, self._pieces = self._pieces, []
        return pieces


class PlainText(CharacterParser):
    """Passes an answer through: all of it is text."""

    def _take(self, character: str) -> None:
        self._emit_text(character)

    def _end(self) -> None:
        pass


class ParsersInTurn:
    """Splits off reasoning first, and finds tool calls in the text that remains."""

    def __init__(self, reasoning: AnswerParser, calls: AnswerParser) -> None:
        self._reasoning = reasoning
        self._calls = calls

    def feed(self, text: str) -> list[AnswerPiece]:
        """Takes the next text of the answer and returns the pieces that are certain."""
        return self._with_calls(self._reasoning.feed(text))

    def finish(self) -> list[AnswerPiece]:
        """Returns the pieces of the text that was held back."""
        return [*self._with_calls(self._reasoning.finish()), *self._calls.finish()]

    def _with_calls(self, pieces: list[AnswerPiece]) -> list[AnswerPiece]:
        found: list[AnswerPiece] = []
        for piece in pieces:
            found += self._calls.feed(piece.text) if isinstance(piece, TextPiece) else [piece]
        return found
