"""Breaks up control tokens that a user or a tool has written, so that they stay text.

The whole prompt is tokenized at once, as stock does: a separator inside the written name of a token keeps the tokenizer
from finding the token. Tokenizing the pieces apart would change the tokens around them.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from zipmoe.errors import InvalidRequest

SEPARATORS: Final = ("\u200b", "\u2060", " ")
"""Zero width space, word joiner, space: the first that keeps the tokenizer from finding the token is taken."""

_NEVER: Final = "(?!)"
"""A pattern that matches nothing."""

_MARKER: Final = re.compile(r"[<\[|\u25c1\u3010\uff5c].*[>\]|\u25b7\u3011\uff5c]", re.DOTALL)


def control_tokens(special: Iterable[str], added: Iterable[str], template: str) -> frozenset[str]:
    """Returns the control tokens of a chat template.

    Args:
        special: names of the tokenizer's special tokens.
        added: names of all added tokens. One counts if the template writes it and if it looks like a marker, such as
            `<tool_call>`; words and runs of spaces do not.
        template: source of the template.
    """
    written = {name for name in added if name in template and _MARKER.fullmatch(name)}
    # The name of a token with one character has no inside where it could be broken up.
    return frozenset(name for name in {*special, *written} if len(name) > 1)


class ControlTokenBreaker:
    """Breaks up the control tokens in the contents of one conversation."""

    def __init__(self, tokens: Mapping[str, int], ids_of: Callable[[str], Collection[int]]) -> None:
        """Prepares for a conversation.

        Args:
            tokens: ids of the control tokens by name.
            ids_of: tokenizes a text, control tokens in it included.
        """
        longest_first = sorted(tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or _NEVER)
        self._tokens = tokens
        self._ids_of = ids_of
        self._separators: dict[str, str] = {}

    @property
    def broken(self) -> frozenset[str]:
        """The control tokens that were found."""
        return frozenset(self._separators)

    def text(self, text: str) -> str:
        """Returns a text without control tokens; the same text if there is none in it."""
        return self.texts([text])[0]

    def texts(self, texts: Sequence[str]) -> list[str]:
        """Returns texts that a template may join, without control tokens, be they in one text or across several."""
        found = list(texts)
        # Tokens that overlap are found one after the other.
        while matches := list(self._pattern.finditer("".join(found))):
            found = _inserted(found, [(match.start() + 1, self._separator(match[0])) for match in matches])
        return found

    def value(self, value: Any) -> Any:
        """Returns a JSON value whose texts, keys included, have no control tokens."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.value(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def _separator(self, token: str) -> str:
        """Returns the separator for a token.

        Raises:
            InvalidRequest: the tokenizer finds the token in spite of every separator.
        """
        if token not in self._separators:
            for separator in SEPARATORS:
                if self._tokens[token] not in self._ids_of(token[0] + separator + token[1:]):
                    self._separators[token] = separator
                    break
            else:
                raise InvalidRequest(
                    f"a user's or a tool's content has the control token {token!r}, which cannot be kept as text",
                    next_step="leave the token out, or start the router with --trust-control-tokens",
                )
        return self._separators[token]


def _inserted(texts: Sequence[str], places: Sequence[tuple[int, str]]) -> list[str]:
    """Inserts separators at places of the joined texts, which ascend."""
    result, begin, waiting = [], 0, deque(places)
    for text in texts:
        pieces, done = [], 0
        while waiting and waiting[0][0] <= begin + len(text):
            place, separator = waiting.popleft()
            pieces += [text[done : place - begin], separator]
            done = place - begin
        result.append("".join([*pieces, text[done:]]))
        begin += len(text)
    return result
