"""The grammar of tool calls: the text around a call, the name of a tool, and arguments that fit the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llguidance import LLMatcher

from zipmoe.errors import InvalidRequest
from zipmoe.model.text.grammar_source import GAP, MAX_SCHEMA_BYTES, GrammarSource, check_size, literal


@dataclass(frozen=True)
class ToolSchema:
    """A tool that may be called.

    Attributes:
        name: the tool's name, written into JSON.
        parameters: JSON schema of the arguments.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class CallForm:
    """The text of tool calls around names and arguments. Names of special tokens in it stand for these tokens.

    A call is `before`, the name, `between`, the arguments as a JSON object, `after`. The answer is `opening`, the
    calls, `closing`.

    Attributes:
        separator: text between two calls; None allows a single call.
    """

    before: str
    between: str
    after: str
    opening: str = ""
    closing: str = ""
    separator: str | None = None


HERMES: Final = CallForm('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n")
PLAIN_JSON: Final = CallForm('{"name": "', '", "arguments": ', "}")


def tool_calls(tools: Sequence[ToolSchema], form: CallForm, special_tokens: Mapping[str, int]) -> GrammarSource:
    """Returns the grammar of an answer that calls one of some tools, or several.

    Keywords of the schemas that llguidance does not know are left out: arguments may then break the schema.

    Args:
        tools: the tools; one of them for a named `tool_choice`.
        form: the text around the calls.
        special_tokens: ids of the special tokens by name (`GrammarVocabulary.special_tokens`).

    Raises:
        InvalidRequest: there is no tool, or the tools are too long together.
    """
    if not tools:
        raise InvalidRequest("there is no tool to call")
    parts = _Parts(special_tokens)
    calls, rules = [], []
    for number, tool in enumerate(tools):
        schema = {**tool.parameters, "x-guidance": {"whitespace_pattern": GAP, "lenient": True}}
        name = json.dumps(tool.name, ensure_ascii=False)[1:-1]
        calls.append(parts.of(form.before + name + form.between) + f" arguments_{number} " + parts.of(form.after))
        # A rule of its own for each schema: its references start at its own root.
        rules.append(f"arguments_{number}: %json {json.dumps(schema)}")
    more = "" if form.separator is None else f" ({parts.of(form.separator)} call)*"
    lines = [
        f"start: {parts.of(form.opening)} call{more} {parts.of(form.closing)}",
        f"call: {' | '.join(calls)}",
        *rules,
    ]
    text = "\n".join(lines)
    check_size("the list of tools", text, MAX_SCHEMA_BYTES)
    return GrammarSource("tool call", LLMatcher.grammar_from_lark(text))


class _Parts:
    """Cuts texts into strings and special tokens of a grammar."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        names = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special_tokens = special_tokens
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def of(self, text: str) -> str:
        """Returns a text as a sequence of strings and tokens; nothing for an empty text."""
        parts = [text] if self._names is None else self._names.split(text)
        known = self._special_tokens
        return " ".join(f"<[{known[part]}]>" if part in known else literal(part) for part in parts if part)
