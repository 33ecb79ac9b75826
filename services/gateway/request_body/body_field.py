"""A row of a table of fields, and how an object is read with such a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.value_readers import Reader, invalid, shown, unsupported

_MAX_NAME: Final = 64


@dataclass(frozen=True)
class BodyField:
    """A field that bodies may have. null always means that the field is absent.

    Attributes:
        into: name of the translated value; empty for a field that is not translated.
        read: reads the value; None refuses every value but the neutral ones.
        neutral: values that change nothing.
        is_ignored: whether no value changes anything.
    """

    into: str = ""
    read: Reader | None = None
    neutral: Sequence[Any] = ()
    is_ignored: bool = False


def taken(into: str, read: Reader, *neutral: Any) -> BodyField:
    """Returns a field that is translated."""
    return BodyField(into, read, neutral)


def only(*neutral: Any) -> BodyField:
    """Returns a field of a feature that is not supported: only values that ask for nothing pass."""
    return BodyField(neutral=neutral)


IGNORED: Final = BodyField(is_ignored=True)
"""A field that changes no answer, whatever its value."""

UNKNOWN: Final = only(False, "", [], {})
"""A field that no table knows: it passes if its value says that it asks for nothing."""


def read_object(value: Any, table: Mapping[str, BodyField], path: str = "") -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        value: the object.
        table: the fields that it may have.
        path: where it stands in the body, with a dot at the end; empty for the body itself.

    Returns:
        The translated values by `BodyField.into`. Fields that are absent or neutral are left out.

    Raises:
        HttpProblem: the value is no object, or a field is refused; the message names it.
    """
    if not isinstance(value, dict):
        where = path.removesuffix(".")
        raise (
            invalid(where, f"is {shown(value)}, but has to be an object")
            if where
            else HttpProblem(400, "the body has to be a JSON object", code="invalid_json")
        )
    values: dict[str, Any] = {}
    for key, given in value.items():
        field, name = table.get(key, UNKNOWN), path + key[:_MAX_NAME].encode(errors="replace").decode()
        if given is None or field.is_ignored or any(_same(given, each) for each in field.neutral):
            continue
        if field is UNKNOWN:
            raise HttpProblem(400, f"unknown parameter: {name}", param=name, code="unknown_parameter")
        if field.read is None:
            raise unsupported(name, f" but as {shown(field.neutral[0])}" if field.neutral else "")
        values[field.into] = field.read(name, given)
    return values


def required(values: Mapping[str, Any], name: str, path: str = "") -> Any:
    """Returns a translated value of an object that stands at `path`, as `read_object` takes it.

    Raises:
        HttpProblem: the field is missing.
    """
    if name not in values:
        name = path + name
        raise HttpProblem(400, f"missing parameter: {name}", param=name, code="missing_required_parameter")
    return values[name]


def _same(given: Any, neutral: Any) -> bool:
    """Compares JSON values: 1 and 1.0 are the same number, and 1 is not true."""
    return isinstance(given, bool) == isinstance(neutral, bool) and bool(given == neutral)
