"""Reads the fields of a body that constrain the form of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from zipmoe.client import Constraint
from zipmoe.services.gateway.http_problem import HttpProblem
from zipmoe.services.gateway.request_body.body_field import IGNORED, BodyField, read_object, required, taken
from zipmoe.services.gateway.request_body.value_readers import invalid, shown, text

_ANY, _OBJECT, _SCHEMA = "text", "json_object", "json_schema"

CONSTRAINTS: Final = ("response_format", "guided_regex", "guided_choice")
"""Fields that constrain the answer. At most one may be given."""


def _schema(name: str, value: Any) -> Mapping[str, Any] | bool:
    if not isinstance(value, dict | bool):
        raise invalid(name, f"is {shown(value)}, but has to be a JSON schema")
    return value


_NAMED_SCHEMA: Final[Mapping[str, BodyField]] = {
    "name": IGNORED,
    "description": IGNORED,
    "strict": IGNORED,  # answers follow every schema strictly
    "schema": taken("schema", _schema),
}


def _named_schema(name: str, value: Any) -> Mapping[str, Any]:
    return read_object(value, _NAMED_SCHEMA, f"{name}.")


_FORMAT: Final[Mapping[str, BodyField]] = {
    "type": taken("type", text),
    _SCHEMA: taken(_SCHEMA, _named_schema),
}


def response_format(name: str, value: Any) -> Constraint | None:
    """Reads OpenAI's form of an answer; None for text. A schema that is left out allows any JSON object."""
    given = read_object(value, _FORMAT, f"{name}.")
    kind = _kind(name, given)
    if (kind == _SCHEMA) != (_SCHEMA in given):
        raise invalid(name, f"has to have {_SCHEMA} if, and only if, its type is {_SCHEMA}")
    if kind == _ANY:
        return None
    schema = given.get(_SCHEMA, {}).get("schema")
    return Constraint(json_object=True) if schema is None else Constraint(json_schema=schema)


_TEXT_FORMAT: Final[Mapping[str, BodyField]] = {**_NAMED_SCHEMA, "type": taken("type", text)}


def text_format(name: str, value: Any) -> Constraint | None:
    """Reads the form of an answer where the schema stands beside its type; None for text."""
    given = read_object(value, _TEXT_FORMAT, f"{name}.")
    kind = _kind(name, given)
    if kind == _SCHEMA:
        return Constraint(json_schema=required(given, "schema", f"{name}."))
    return None if kind == _ANY else Constraint(json_object=True)


def _kind(name: str, given: Mapping[str, Any]) -> Any:
    kind = required(given, "type", f"{name}.")
    if kind not in (_ANY, _OBJECT, _SCHEMA):
        raise invalid(f"{name}.type", f"is {shown(kind)}, but has to be {_ANY}, {_OBJECT} or {_SCHEMA}")
    return kind


def guided_regex(name: str, value: Any) -> Constraint:
    """Reads a regular expression that the answer has to match."""
    return Constraint(regex=text(name, value))


def guided_choice(name: str, value: Any) -> Constraint:
    """Reads the texts of which the answer has to be one."""
    if not isinstance(value, list):
        raise invalid(name, f"is {shown(value)}, but has to be a list of texts")
    return Constraint(choice=tuple(text(f"{name}.{place}", each) for place, each in enumerate(value)))


CONSTRAINT_FIELDS: Final[Mapping[str, BodyField]] = {
    "response_format": taken("response_format", response_format),
    "guided_regex": taken("guided_regex", guided_regex, ""),
    "guided_choice": taken("guided_choice", guided_choice, []),
}


def constraint_of(values: Mapping[str, Any]) -> Constraint | None:
    """Returns the constraint that the translated fields of a body describe; None if any answer will do.

    Raises:
        HttpProblem: several fields constrain the answer.
    """
    named = [name for name in CONSTRAINTS if values.get(name) is not None]
    if len(named) > 1:
        raise HttpProblem(400, f"{' and '.join(named)} exclude each other", param=named[1], code="invalid_value")
    return values[named[0]] if named else None
