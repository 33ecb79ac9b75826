"""Finds the names in a PromQL expression, as far as Prometheus does not say them itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTED = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\s*\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORD = re.compile(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*\b(?!\s*\()")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", "by", "without"}


@dataclass(frozen=True)
class Names:
    """The names in an expression.

    Attributes:
        metrics: names of series.
        matched: pairs of a series' name and a label that one of its selectors matches.
        grouped: labels that results are grouped or joined by.
    """

    metrics: frozenset[str]
    matched: frozenset[tuple[str, str]]
    grouped: frozenset[str]


def names_of(expression: str) -> Names:
    """Takes an expression apart."""
    rest = _STRING.sub("", expression)
    matched = {
        (match[1], label)
        for match in _SELECTED.finditer(rest)
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", match[2])
    }
    grouped = {label for match in _GROUPING.finditer(rest) for label in re.findall(r"\w+", match[1])}
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", _GROUPING.sub(" ", rest))
    metrics = {word for word in _WORD.findall(rest) if word.lower() not in _KEYWORDS}
    return Names(frozenset(metrics), frozenset(matched), frozenset(grouped))
