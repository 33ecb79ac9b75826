"""Lists of numbers on the command line."""

from __future__ import annotations

from zipmoe.errors import InvalidRequest


def parse_counts(name: str, text: str) -> list[int]:
    """Reads positive integers with commas between them, for example `1,4,16`.

    Raises:
        InvalidRequest: it is not that; names the option.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise InvalidRequest(f"{name} has to be positive integers with commas between them, not {text!r}")
    return [int(word) for word in words]
