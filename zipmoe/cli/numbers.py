"""Parses lists of numbers from the command line."""

from __future__ import annotations

from zipmoe.errors import InvalidRequest


def parse_counts(name: str, text: str) -> list[int]:
    """Parses positive integers separated by commas, for example `1,4,16`.

    Raises:
        InvalidRequest: the text is no such list; the message names the option.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InvalidRequest(f"{name} has to be positive integers with commas between them, not {text!r}")
    return [int(word) for word in words]
