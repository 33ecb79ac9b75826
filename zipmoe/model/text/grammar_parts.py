"""Pieces of grammars in llguidance's Lark syntax that consist of text and of special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from zipmoe.model.text.grammar_source import literal


class GrammarParts:
    """Writes texts as sequences of strings and special tokens."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        """Remembers ids of special tokens, by name (`GrammarVocabulary.special_tokens`)."""
        names = sorted(filter(None, special_tokens), key=len, reverse=True)
        self._special_tokens = special_tokens
        self._names = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None

    def of(self, text: str) -> str:
        """Returns a text as a sequence of strings and tokens; nothing for an empty text."""
        return " ".join(self._parts(text))

    def until(self, rule: str, any_text: str, closing: str) -> list[str]:
        """Returns the lines of a rule: any text, and the closing that ends it.

        A string at the beginning of the closing belongs to the terminal of the text: llguidance's lexer takes the
        longest text, and would take the closing as well.

        Args:
            rule: name of the rule, in lower case.
            any_text: expression of a terminal that does not match the closing inside of a text.
            closing: not empty.
        """
        first, *rest = self._parts(closing)
        terminal = rule.upper()
        if first.startswith('"'):
            return [f"{rule}: {terminal} {' '.join(rest)}", f"{terminal}: ({any_text}) {first}"]
        return [f"{rule}: {terminal}? {' '.join([first, *rest])}", f"{terminal}: {any_text}"]

    def _parts(self, text: str) -> list[str]:
        parts = [text] if self._names is None else self._names.split(text)
        known = self._special_tokens
        return [f"<[{known[part]}]>" if part in known else literal(part) for part in parts if part]


def text_without(markers: Iterable[str], length: str = "*") -> str:
    """Returns the expression of a terminal that matches texts without some markers.

    Args:
        markers: not empty.
        length: number of characters, as a repetition of a regular expression.
    """
    escaped = "|".join(re.escape(marker).replace("/", "\\/").replace("\n", "n") for marker in markers)
    return f"/(?s:.){length}/ & ~/(?s:.*)({escaped})(?s:.*)/"
