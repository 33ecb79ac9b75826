"""Readers of JSON values: each checks type and range of one value and translates it, or refuses it by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from zipmoe.services.gateway.http_problem import HttpProblem

Reader = Callable[[str, Any], Any]
"""Takes the name of a field and its JSON value, and returns the value's translation; raises `HttpProblem`."""

LARGEST_COUNT: Final = 2**32 - 1
_SEEDS: Final = 2**64
_MAX_SHOWN: Final = 64


def shown(value: Any) -> str:
    """Writes a JSON value for a message: short, as JSON writes it, and of whole characters."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value).replace("'", '"') if not isinstance(value, str) else f'"{value}"'
    text = text.encode(errors="replace").decode()
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def invalid(name: str, problem: str) -> HttpProblem:
    """Returns the refusal of a value."""
    return HttpProblem(400, f"{name} {problem}", param=name, code="invalid_value")


def unsupported(name: str, problem: str) -> HttpProblem:
    """Returns the refusal of a value that would be valid elsewhere."""
    return HttpProblem(400, f"{name}: not supported{problem}", param=name, code="unsupported_value")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole_number(name: str, value: Any) -> int:
    if not _is_number(value) or (isinstance(value, float) and not value.is_integer()):
        raise invalid(name, f"is {shown(value)}, but has to be a whole number")
    return int(value)


def number(lowest: float, highest: float, *, above: bool = False) -> Reader:
    """Reads a number in a range; with `above`, the lowest is not part of the range."""
    if math.isinf(highest):
        requirement = f"finite and {'above' if above else 'at least'} {lowest:g}"
    else:
        requirement = f"in {'(' if above else '['}{lowest:g}, {highest:g}]"

    def read(name: str, value: Any) -> float:
        if not _is_number(value):
            raise invalid(name, f"is {shown(value)}, but has to be a number")
        try:
            real = float(value)
        except OverflowError:
            real = math.inf
        if not math.isfinite(real) or not lowest <= real <= highest or (above and real == lowest):
            raise invalid(name, f"is {shown(value)}, but has to be {requirement}")
        return real

    return read


def whole(lowest: int, highest: int | None = None) -> Reader:
    """Reads a whole number in a range; 8.0 is one, as JSON knows a single kind of numbers."""
    requirement = f"at least {lowest}" if highest is None else f"in [{lowest}, {highest}]"

    def read(name: str, value: Any) -> int:
        count = _whole_number(name, value)
        if count < lowest or (highest is not None and count > highest):
            raise invalid(name, f"is {shown(value)}, but has to be {requirement}")
        return count

    return read


def ceiling(name: str, value: Any) -> int | None:
    """Reads the most tokens of an answer. -1 means no limit, and any limit above the context means the context."""
    count: int = whole(-1)(name, value)
    return None if count == -1 else min(count, LARGEST_COUNT)


def kept_tokens(name: str, value: Any) -> int:
    """Reads `top_k`. -1 keeps all tokens, as 0 does, and so does a number above every vocabulary."""
    count: int = whole(-1)(name, value)
    return 0 if count == -1 else min(count, LARGEST_COUNT)


def seed(name: str, value: Any) -> int | None:
    """Reads a seed. -1 is random, as at other servers; OpenAI's other negative seeds are taken modulo 2**64."""
    number_of_seed = _whole_number(name, value)
    return None if number_of_seed == -1 else number_of_seed % _SEEDS


def flag(name: str, value: Any) -> bool:
    """Reads true or false."""
    if not isinstance(value, bool):
        raise invalid(name, f"is {shown(value)}, but has to be true or false")
    return value


def text(name: str, value: Any) -> str:
    """Reads a text of whole characters."""
    if not isinstance(value, str):
        raise invalid(name, f"is {shown(value)}, but has to be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = ord(value[error.start])
        raise invalid(
            name,
            f"has half a surrogate pair, U+{half:04X}, at character {error.start}: a character was cut in two",
        ) from error
    return value


def texts(most: int) -> Reader:
    """Reads a text, or a list of at most `most` texts. Empty texts are left out."""

    def read(name: str, value: Any) -> tuple[str, ...]:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list):
            raise invalid(name, f"is {shown(value)}, but has to be a text or a list of texts")
        if len(given) > most:
            raise invalid(name, f"has {len(given)} texts, but has to have at most {most}")
        read_all = [text(f"{name}.{place}" if given is value else name, each) for place, each in enumerate(given)]
        return tuple(each for each in read_all if each)

    return read


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Reads a list of token ids."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of token ids")
    for place, token_id in enumerate(value):
        if type(token_id) is not int or not 0 <= token_id <= LARGEST_COUNT:
            raise invalid(f"{name}.{place}", f"is {shown(token_id)}, but has to be a token id")
    return tuple(value)


def biases(name: str, value: Any) -> dict[int, float]:
    """Reads an object of numbers by token id."""
    if not isinstance(value, dict):
        raise invalid(name, f"is {shown(value)}, but has to be an object of numbers by token id")
    read_bias = number(-100, 100)
    read: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10 and int(key) <= LARGEST_COUNT):
            raise invalid(name, f"has the key {shown(key)}, but keys have to be token ids")
        read[int(key)] = read_bias(f"{name}.{key}", bias)
    return read


def prompts(name: str, value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Reads one prompt or a list of prompts, each a text or a list of token ids."""
    if isinstance(value, str):
        return (text(name, value),)
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a text, a list of token ids, or a list of prompts")
    if not value:
        raise invalid(name, "is empty")
    if not isinstance(value[0], str | list):
        return (token_ids(name, value),)
    read = text if isinstance(value[0], str) else token_ids
    return tuple(read(f"{name}.{place}", each) for place, each in enumerate(value))
