"""Grammars that constrain answers, as text for llguidance: JSON, regular expressions, choices."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llguidance import LLMatcher

from zipmoe.errors import InvalidRequest

MAX_SCHEMA_BYTES: Final = 1 << 17
MAX_REGEX_BYTES: Final = 1 << 14
"""Longest sources. A mask may cost time in proportion to the text that a grammar leaves no choice about: a literal of
64 KiB costs 0.1 s a token."""

GAP: Final = r"(\x20|\x0A[\x20\x09]{0,64})"
"""White space that an answer in JSON may have wherever JSON allows it: a blank, or a line feed and an indentation.
With any white space, a weak model that falls into repeating it never ends."""

_UNQUOTED = re.compile("[\x7f-\xa0\u2028\u2029\ufeff]")


@dataclass(frozen=True)
class GrammarSource:
    """A grammar before it is compiled; equal sources are compiled once.

    Attributes:
        kind: the sort of constraint, for messages.
        text: the grammar in llguidance's own form.
    """

    kind: str
    text: str


def json_object() -> GrammarSource:
    """Returns the grammar of any JSON object."""
    return GrammarSource("json_object", _from_schema('{"type":"object"}'))


def json_schema(schema: str) -> GrammarSource:
    """Returns the grammar of the values that a JSON schema describes.

    Raises:
        InvalidRequest: the schema is too long, or no JSON.
    """
    check_size("the JSON schema", schema, MAX_SCHEMA_BYTES)
    try:
        return GrammarSource("json_schema", _from_schema(schema))
    except ValueError as error:
        raise InvalidRequest(f"the JSON schema cannot be read: {error}") from error


def regex(pattern: str) -> GrammarSource:
    """Returns the grammar of the texts that a regular expression matches as a whole.

    Args:
        pattern: in the syntax of Rust's `regex` crate: no look-around, no back references.

    Raises:
        InvalidRequest: the expression is empty or too long.
    """
    if not pattern:
        raise InvalidRequest("the regular expression is empty")
    check_size("the regular expression", pattern, MAX_REGEX_BYTES)
    return GrammarSource("regex", LLMatcher.grammar_from_regex(pattern))


def choice(texts: Sequence[str]) -> GrammarSource:
    """Returns the grammar of one of some texts.

    Raises:
        InvalidRequest: there is no text, one is empty, or they are too long together.
    """
    if not texts:
        raise InvalidRequest("there is nothing to choose from")
    if not all(texts):
        raise InvalidRequest("a choice is empty")
    check_size("the list of choices", "".join(texts), MAX_SCHEMA_BYTES)
    rules = f"start: CHOICE\nCHOICE: {' | '.join(map(literal, texts))}"
    return GrammarSource("choice", LLMatcher.grammar_from_lark(rules))


def literal(text: str) -> str:
    """Returns a text as a string of llguidance's Lark syntax, on one line."""
    return _UNQUOTED.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def check_size(name: str, text: str, limit: int) -> None:
    """Raises InvalidRequest if a text is longer than `limit` bytes, or no text that can be encoded."""
    try:
        length = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} has half a surrogate pair at character {error.start}") from error
    if length > limit:
        raise InvalidRequest(f"{name} has {length} bytes, but has to have at most {limit}")


def _from_schema(schema: str) -> str:
    schema = {"true": "{}", "false": '{"enum":[]}'}.get(schema.strip(), schema)
    own = '"x-guidance"' in schema  # llguidance's own settings, such as {"whitespace_flexible": false}
    return LLMatcher.grammar_from_json_schema(schema, defaults={} if own else {"whitespace_pattern": GAP})
