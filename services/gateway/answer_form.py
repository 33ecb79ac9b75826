"""Parses the fields of a request that constrain the form of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zipmoe.client import Constraint
from zipmoe.services.gateway.http_problem import HttpProblem

_ANY = "text"


class JsonSchema(BaseModel):
    """A named schema. Answers follow every schema strictly, whatever `strict` says."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str | None = None
    description: str | None = None
    json_schema: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _belongs(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema is given if, and only if, the type is json_schema")
        return self

    @property
    def constraint(self) -> Constraint | None:
        """The constraint; None for text. A schema that is left out allows any JSON object."""
        if self.type == _ANY:
            return None
        schema = None if self.json_schema is None else self.json_schema.json_schema
        return Constraint(json_object=True) if schema is None else Constraint(json_schema=schema)


def constraint_of(
    response_format: ResponseFormat | None, guided_regex: str | None, guided_choice: list[str] | None
) -> Constraint | None:
    """Returns the constraint that the fields of a request describe; None if any answer will do.

    Raises:
        HttpProblem: several fields constrain the answer.
    """
    given: Mapping[str, Constraint | None] = {
        "response_format": None if response_format is None else response_format.constraint,
        "guided_regex": None if guided_regex is None else Constraint(regex=guided_regex),
        "guided_choice": None if guided_choice is None else Constraint(choice=tuple(guided_choice)),
    }
    named = [name for name, constraint in given.items() if constraint is not None]
    if len(named) > 1:
        raise HttpProblem(400, f"{' and '.join(named)} exclude each other", param=named[1], code="invalid_value")
    return given[named[0]] if named else None
