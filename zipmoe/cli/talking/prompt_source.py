"""Reads a prompt from the command line, a file, standard input or token ids."""

from __future__ import annotations

import sys
from pathlib import Path

from zipmoe.errors import InvalidRequest, NotFound


def read_text(path: Path, kind: str = "prompt file") -> str:
    """Reads a text from a file without changing a byte; `-` is standard input. Errors name the kind of the file.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: the file is a directory, or is not valid UTF-8.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"no {kind} {name}") from error
    except IsADirectoryError as error:
        raise InvalidRequest(f"{kind} {name} is a directory") from error
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise InvalidRequest(
            f"{name} is not valid UTF-8: byte 0x{byte:02x} at offset {error.start}", next_step="convert it to UTF-8"
        ) from error


def parse_token_ids(text: str) -> list[int]:
    """Parses token ids separated by commas or blanks.

    Raises:
        InvalidRequest: a word is not a token id, or there is no word.
    """
    words = text.replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) < 2**32):
            raise InvalidRequest(f"{word!r} is not a token id", next_step="write token ids as 1,2,3")
    if not words:
        raise InvalidRequest("the prompt is empty", next_step="write token ids as 1,2,3")
    return [int(word) for word in words]


def parse_biases(text: str) -> dict[int, float]:
    """Parses numbers by token id, such as `50256=-100,11=2.5`.

    Raises:
        InvalidRequest: a word is no token id with a number.
    """
    biases = {}
    for word in text.replace(",", " ").split():
        token_id, _, number = word.partition("=")
        try:
            biases[parse_token_ids(token_id)[0]] = float(number)
        except (InvalidRequest, ValueError) as error:
            raise InvalidRequest(f"{word!r} is no token id with a number", next_step="write 11=2.5,13=-100") from error
    return biases


def check_text(text: str) -> str:
    """Checks a text from the command line and returns the text.

    Raises:
        InvalidRequest: the text is empty, or was not valid UTF-8 (which Python passes on as lone surrogates).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the prompt is not valid UTF-8 at character {error.start}", next_step="convert it to UTF-8"
        ) from error
    if not text:
        raise InvalidRequest("the prompt is empty", next_step="give a text")
    return text
