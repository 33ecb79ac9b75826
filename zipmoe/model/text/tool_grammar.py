"""The grammar of tool calls: the text around a call, the name of a tool, and arguments that fit the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher

from zipmoe.errors import InvalidRequest
from zipmoe.model.text.call_forms import CallForm, ReasoningForm
from zipmoe.model.text.element_arguments import element_arguments
from zipmoe.model.text.grammar_parts import GrammarParts, text_without
from zipmoe.model.text.grammar_source import GAP, MAX_SCHEMA_BYTES, GrammarSource, check_size

_BARE_NAME: Final = re.compile(r"[^\s<>\[\]{}]+")
_NO_ARGUMENTS: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolSchema:
    """A tool that may be called.

    Attributes:
        name: the tool's name.
        parameters: JSON schema of the arguments; empty for a tool without arguments.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class DemandedCalls:
    """An answer that has to call tools.

    Attributes:
        tools: tools that may be called; one for a named `tool_choice`.
        form: the text around the calls.
        reasoning: the text around reasoning that may come first; None allows none.
        several: whether there may be more than one call, where the form has room for it.
    """

    tools: Sequence[ToolSchema]
    form: CallForm
    reasoning: ReasoningForm | None = None
    several: bool = True


def tool_calls(demanded: DemandedCalls, special_tokens: Mapping[str, int]) -> GrammarSource:
    """Returns the grammar of an answer that calls one of some tools, or several.

    Keywords of the schemas that llguidance does not know are left out: arguments may then break the schema.

    Args:
        demanded: the tools and the form of the answer.
        special_tokens: ids of the special tokens by name (`GrammarVocabulary.special_tokens`).

    Raises:
        InvalidRequest: there is no tool, the tools are too long together, or one cannot be called in this form.
    """
    if not demanded.tools:
        raise InvalidRequest("there is no tool to call")
    parts, form = GrammarParts(special_tokens), demanded.form
    begin = [] if demanded.reasoning is None else list(_reasoning(demanded.reasoning, parts))
    calls: list[str] = []
    rules: list[str] = []
    for number, tool in enumerate(demanded.tools):
        rule = f"arguments_{number}"
        calls.append(f"{parts.of(form.before + _name(tool, form) + form.between)} {rule} {parts.of(form.after)}")
        rules += _arguments(rule, tool, form, parts)
    separator = form.separator if demanded.several else None
    more = "" if separator is None else f" ({parts.of(separator)} call)*"
    opening = f"({' | '.join(map(parts.of, form.openings))})" if any(form.openings) else ""
    lines = [
        f"start: {'reasoning' if begin else ''} {opening} call{more} {parts.of(form.closing)}",
        *begin,
        f"call: {' | '.join(calls)}",
        *rules,
    ]
    text = "\n".join(lines)
    check_size("the list of tools", text, MAX_SCHEMA_BYTES)
    return GrammarSource("tool call", LLMatcher.grammar_from_lark(text))


def _reasoning(form: ReasoningForm, parts: GrammarParts) -> Iterator[str]:
    yield (
        f"reasoning: thoughts{' gap' if form.gap else ''}"
        if form.begun
        else (f"reasoning: ({parts.of(form.opening)} thoughts{' gap' if form.gap else ''})?")
    )
    yield from parts.until("thoughts", text_without(form.markers), form.closing)
    if form.gap:
        yield f"gap: /\\n{{0,{form.gap}}}/"


def _name(tool: ToolSchema, form: CallForm) -> str:
    if form.quoted_name:
        return json.dumps(tool.name, ensure_ascii=False)[1:-1]
    if not _BARE_NAME.fullmatch(tool.name):
        raise InvalidRequest(f"the tool {tool.name[:64]!r} cannot be called: its name has blanks or brackets")
    return tool.name


def _arguments(rule: str, tool: ToolSchema, form: CallForm, parts: GrammarParts) -> Iterator[str]:
    schema = {"type": "object", **(tool.parameters or _NO_ARGUMENTS)}
    if schema["type"] != "object":
        raise InvalidRequest(f"the parameters of the tool {tool.name[:64]!r} are no object")
    if form.elements is not None:
        yield from element_arguments(rule, tool.name, schema, form.elements, parts)
        return
    # A rule of its own for each schema: its references start at its own root.
    yield f"{rule}: %json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': GAP, 'lenient': True}})}"
