"""Reads a tool call that is written as a JSON object, while its characters arrive."""

from __future__ import annotations

import json
from enum import Enum, auto
from typing import Final

_SPACE: Final = frozenset(" \t\r\n")
_ARGUMENT_KEYS: Final = frozenset({"arguments", "parameters"})
_NAME_KEY: Final = "name"


class ObjectState(Enum):
    """State of an object after a character."""

    OPEN = auto()
    """More characters belong to the object."""
    COMPLETE = auto()
    """The character has closed the object."""
    BROKEN = auto()
    """The character cannot belong to a JSON object. It has not been taken."""


class JsonNesting:
    """Finds the end of a JSON object or array whose first bracket has been taken."""

    def __init__(self) -> None:
        self._depth = 1
        self._in_string = self._escaped = False

    def take(self, character: str) -> bool:
        """Takes the next character; returns whether it has closed the object or array."""
        if self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return not self._depth


class _ObjectPlace(Enum):
    START = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    STRING = auto()
    NESTED = auto()
    SCALAR = auto()
    COMMA = auto()


class JsonCall:
    """A JSON object with a name and arguments: `{"name": "f", "arguments": {...}}`, in any order of the keys.

    Arguments may also be called `parameters`, and may be a string with JSON inside. The first of
    repeated keys counts.

    Attributes:
        name: the name of the called tool; None before it is known.
        begun: whether the value of the arguments has begun, or the object is complete.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.begun = False
        self._place = _ObjectPlace.START
        self._source: list[str] = []
        self._value: list[str] = []
        self._key = ""
        self._nesting = JsonNesting()
        self._escaped = False
        self._arguments: list[str] = []
        self._had_arguments = False

    @property
    def source(self) -> str:
        """All characters that were taken."""
        return "".join(self._source)

    def arguments(self) -> str:
        """Returns the text of the arguments that has arrived since the last call of this method."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def take(self, character: str) -> ObjectState:
        """Takes the next character of the object."""
        progress = self._step(character)
        if progress is not ObjectState.BROKEN:
            self._source.append(character)
        if progress is ObjectState.COMPLETE:
            self.begun = True
            if not self._had_arguments:
                self._arguments.append("{}")
        return progress

    @property
    def _in_arguments(self) -> bool:
        return self._key in _ARGUMENT_KEYS and not self._had_arguments

    def _step(self, character: str) -> ObjectState:
        place = self._place
        if place in (_ObjectPlace.IN_KEY, _ObjectPlace.STRING):
            return self._in_quotes(character)
        if place is _ObjectPlace.NESTED:
            return self._nested(character)
        if place is _ObjectPlace.SCALAR and character not in ",}" and character not in _SPACE:
            if character.isalnum() or character in "+-.":
                self._value.append(character)
                return ObjectState.OPEN
            return ObjectState.BROKEN
        if place is _ObjectPlace.SCALAR:
            self._end_value()
            place = self._place
        if character in _SPACE:
            return ObjectState.OPEN
        return self._between(place, character)

    def _between(self, place: _ObjectPlace, character: str) -> ObjectState:
        """Takes a character outside of strings and values."""
        if place is _ObjectPlace.VALUE:
            return self._begin_value(character)
        following = {
            (_ObjectPlace.START, "{"): _ObjectPlace.KEY,
            (_ObjectPlace.KEY, '"'): _ObjectPlace.IN_KEY,
            (_ObjectPlace.COLON, ":"): _ObjectPlace.VALUE,
            (_ObjectPlace.COMMA, ","): _ObjectPlace.KEY,
        }.get((place, character))
        if following is not None:
            self._place = following
            if following is _ObjectPlace.IN_KEY:
                self._value = ['"']
            return ObjectState.OPEN
        return (
            ObjectState.COMPLETE
            if character == "}" and place in (_ObjectPlace.KEY, _ObjectPlace.COMMA)
            else ObjectState.BROKEN
        )

    def _begin_value(self, character: str) -> ObjectState:
        self._value = [character]
        if character == '"':
            self._place = _ObjectPlace.STRING
        elif character in "{[":
            self._place, self._nesting = _ObjectPlace.NESTED, JsonNesting()
            if self._in_arguments:
                self.begun = True
                self._arguments.append(character)
        elif character.isalnum() or character == "-":
            self._place = _ObjectPlace.SCALAR
        else:
            return ObjectState.BROKEN
        return ObjectState.OPEN

    def _in_quotes(self, character: str) -> ObjectState:
        self._value.append(character)
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            try:
                text = str(json.loads("".join(self._value), strict=False))
            except ValueError:
                return ObjectState.BROKEN
            if self._place is _ObjectPlace.IN_KEY:
                self._key, self._place = text, _ObjectPlace.COLON
            else:
                self._end_string(text)
        return ObjectState.OPEN

    def _end_string(self, text: str) -> None:
        if self._in_arguments:
            self._arguments.append(text or "{}")
            self._had_arguments = self.begun = True
        elif self._key == _NAME_KEY and self.name is None:
            self.name = text
        self._place = _ObjectPlace.COMMA

    def _nested(self, character: str) -> ObjectState:
        if self._in_arguments:
            self._arguments.append(character)
        if self._nesting.take(character):
            self._had_arguments = self._had_arguments or self._in_arguments
            self._place = _ObjectPlace.COMMA
        return ObjectState.OPEN

    def _end_value(self) -> None:
        """Ends a number, `true`, `false` or `null`."""
        if self._in_arguments:
            text = "".join(self._value)
            self._arguments.append("{}" if text == "null" else text)
            self._had_arguments = self.begun = True
        self._place = _ObjectPlace.COMMA
