"""Reads untrusted JSON from disk: every value is checked for type and range when it is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NoReturn

from zipmoe.errors import CorruptData

MAX_TEXT_CHARACTERS = 1024
"""Characters of the longest text that a store holds."""

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,@+= -]{0,254}")
TEMPLATE_FOLDER = "additional_chat_templates"
"""The one folder that a store may have, with the name that transformers looks for."""

TEMPLATE_SUFFIX = ".jinja"
_XXH3 = re.compile(r"[0-9a-f]{16}")


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is not a number that a store holds")


def parse_json(text: bytes, what: str) -> object:
    """Parses JSON from disk.

    Raises:
        CorruptData: the text is not UTF-8 JSON, or is nested too deeply.
    """
    try:
        # A store has no floats. Refusing floats here also refuses 1e999, which Python reads as infinity.
        value: object = json.loads(text, parse_constant=_refuse, parse_float=_refuse)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{what} is not JSON: {error}") from error
    return value


def canonical_json(value: object) -> bytes:
    """Writes JSON in the canonical form, the input of checksums: keys sorted, no white space, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def xxh3_text(value: int) -> str:
    """Writes an xxh3-64 as 16 lower-case hexadecimal digits."""
    return f"{value:016x}"


def checked_integer(value: object, where: str, low: int, high: int) -> int:
    """Accepts an integer (not a boolean, not a float) from `low` to `high`; CorruptData otherwise."""
    if type(value) is not int:
        raise CorruptData(f"{where} is not an integer")
    if not low <= value <= high:
        raise CorruptData(f"{where} is outside {low} to {high}")
    return value


def checked_xxh3(value: object, where: str) -> int:
    """Accepts 16 lower-case hexadecimal digits; CorruptData otherwise."""
    if not isinstance(value, str) or not _XXH3.fullmatch(value):
        raise CorruptData(f"{where} is not an xxh3-64 of 16 hexadecimal digits")
    return int(value, 16)


def checked_list(value: object, where: str, low: int, high: int) -> list[object]:
    """Accepts a list of `low` to `high` items; CorruptData otherwise."""
    if not isinstance(value, list):
        raise CorruptData(f"{where} is not a list")
    if not low <= len(value) <= high:
        raise CorruptData(f"{where} has {len(value)} items, not {low} to {high}")
    return value


class Fields:
    """A JSON object with typed access to its values by name; `where` names the object in error messages."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CorruptData(f"{where} is not an object")
        self._values: dict[str, object] = value
        self._where = where

    def has(self, key: str) -> bool:
        """Whether the object has the key."""
        return key in self._values

    def get(self, key: str) -> object:
        """Returns the value of a required key; CorruptData if the key is absent."""
        if key not in self._values:
            raise CorruptData(f"{self._where} has no {key!r}")
        return self._values[key]

    def integer(self, key: str, low: int, high: int) -> int:
        """Returns an integer from `low` to `high`; CorruptData otherwise."""
        return checked_integer(self.get(key), f"{key!r} of {self._where}", low, high)

    def boolean(self, key: str) -> bool:
        """Returns true or false; CorruptData otherwise."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise CorruptData(f"{key!r} of {self._where} is neither true nor false")
        return value

    def xxh3(self, key: str) -> int:
        """Returns an xxh3-64; CorruptData if the value is not one."""
        return checked_xxh3(self.get(key), f"{key!r} of {self._where}")

    def items(self, key: str, low: int, high: int) -> list[object]:
        """Returns a list of `low` to `high` items; CorruptData otherwise."""
        return checked_list(self.get(key), f"{key!r} of {self._where}", low, high)

    def objects(self, key: str, low: int, high: int) -> Iterator[Fields]:
        """Yields the objects of a list of `low` to `high` objects; CorruptData otherwise."""
        for index, value in enumerate(self.items(key, low, high)):
            yield Fields(value, f"{key!r}[{index}] of {self._where}")

    def text(self, key: str, longest: int = MAX_TEXT_CHARACTERS) -> str:
        """Returns a string of 1 to `longest` printable ASCII characters; CorruptData otherwise."""
        value = self.get(key)
        if not is_text(value, longest):
            raise CorruptData(f"{key!r} of {self._where} is not a string of 1 to {longest} printable characters")
        assert isinstance(value, str)
        return value

    def file_name(self, key: str) -> str:
        """Returns a plain file name (no directory, no leading dot); CorruptData otherwise."""
        value = self.text(key, 255)
        if not is_file_name(value):
            raise CorruptData(f"{key!r} of {self._where} is not a plain file name")
        return value

    def template_name(self, key: str) -> str:
        """Returns the name of a chat template, `additional_chat_templates/NAME.jinja`; CorruptData otherwise."""
        value = self.text(key, 512)
        if not is_template_name(value):
            raise CorruptData(f"{key!r} of {self._where} is not the name of a chat template")
        return value


def is_text(value: object, longest: int = MAX_TEXT_CHARACTERS) -> bool:
    """Checks whether a value is a string of 1 to `longest` printable ASCII characters."""
    return isinstance(value, str) and 1 <= len(value) <= longest and value.isascii() and value.isprintable()


def is_file_name(name: str) -> bool:
    """Checks whether a store may hold a file named `name`: letters, digits and `_.,@+= -`, no leading dot."""
    return _FILE_NAME.fullmatch(name) is not None


def is_template_name(name: str) -> bool:
    """Checks whether `name` is `additional_chat_templates/NAME.jinja` with a plain file name at its end."""
    folder, slash, file = name.partition("/")
    return folder == TEMPLATE_FOLDER and slash == "/" and file.endswith(TEMPLATE_SUFFIX) and is_file_name(file)
