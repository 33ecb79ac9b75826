"""The grammar of a tool call's arguments where each of them is an element instead of a member of a JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from zipmoe.errors import InvalidRequest
from zipmoe.model.text.call_forms import ElementForm
from zipmoe.model.text.grammar_parts import GrammarParts, text_without
from zipmoe.model.text.grammar_source import literal

_WHOLE_OBJECT: Final = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "minProperties")
_DEFINITIONS: Final = ("$defs", "definitions")
_KEY: Final = re.compile(r"[^<>\s]([^<>\n]*[^<>\s])?")


def element_arguments(
    rule: str, tool: str, schema: Mapping[str, Any], form: ElementForm, parts: GrammarParts
) -> Iterator[str]:
    """Yields the lines of a rule for the arguments of a tool, in the order of the schema's properties.

    A string is written as it is, every other value as JSON.

    Args:
        rule: name of the rule, in lower case.
        tool: name of the tool, for messages.
        schema: JSON schema of the arguments.
        form: the text around an argument.
        parts: writes texts with special tokens.

    Raises:
        InvalidRequest: elements cannot be held to the schema.
    """
    for keyword in _WHOLE_OBJECT:
        if keyword in schema:
            raise _refusal(tool, f"their schema has {keyword!r} beside their properties")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise _refusal(tool, "their schema is invalid")
    required_keys = [str(key) for key in required]
    elements = {**properties, **{key: {} for key in required_keys if key not in properties}}
    names = []
    for number, (key, value) in enumerate(elements.items()):
        if not _KEY.fullmatch(key):
            raise _refusal(tool, f"the name {key[:64]!r} cannot be written in an element")
        name = f"{rule}_{number}"
        names.append(name if key in required_keys else f"{name}?")
        value_rule = f"{name}_value"
        yield f"{name}: {parts.of(form.opening + key + form.key_end)} {value_rule}"
        definitions = {word: schema[word] for word in _DEFINITIONS if word in schema}
        if isinstance(value, dict) and value.get("type") == "string":
            yield from _string(value_rule, f"{tool}.{key}", value, form, parts)
        else:
            whole = {**value, **definitions} if isinstance(value, dict) else value
            yield f"{value_rule}: {value_rule}_json {parts.of(form.closing)}"
            yield f"{value_rule}_json: %json {json.dumps(_lenient(whole))}"
    yield f"{rule}: {' '.join(names) or literal('')}"


def _string(rule: str, place: str, schema: Mapping[str, Any], form: ElementForm, parts: GrammarParts) -> Iterator[str]:
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if "pattern" in schema:
        raise _refusal(place, "a string with a pattern cannot be held to it")
    if listed is None:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        yield from parts.until(rule, text_without(form.markers, f"{{{least},{most}}}"), form.closing)
        return
    texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    if not texts or any(marker in text for text in texts for marker in form.markers):
        raise _refusal(place, "its values cannot be written in an element")
    yield f"{rule}: ({' | '.join(map(literal, texts))}) {parts.of(form.closing)}"


def _lenient(schema: Any) -> Any:
    # A value is one line: the element's closing begins with a line feed.
    settings = {"whitespace_flexible": False, "lenient": True}
    return {**schema, "x-guidance": settings} if isinstance(schema, dict) else schema


def _refusal(place: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"a call of {place[:128]!r} cannot be demanded of this model, which writes arguments as elements: {reason}",
        next_step="simplify the schema, or leave the choice to the model with tool_choice auto",
    )
