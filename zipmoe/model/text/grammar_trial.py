"""Compiles a grammar on trial: `python -m zipmoe.model.text.grammar_trial < GRAMMAR`.

A grammar of a few bytes may take hours and gigabytes, and native code cannot be interrupted. A process of its own can
be killed. It ends with code 0, or with code 1 and the reason on standard output. The trial has single bytes as tokens,
and one special token for all those of the model.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MEMORY_BYTES: Final = 1 << 30
"""Address space of the process."""

STATES: Final = 30_000
"""States of a compiled lexer, 1 to 2 kB each."""

ROW_ITEMS: Final = 10_000
"""Ways to go on behind a token; an object has four for each property that may be left out."""

MAX_REASON: Final = 300
_PARSE_ERROR = "error: "
_SPECIAL_TOKEN: Final = re.compile(r"<\[\d+\]>")
_STAND_IN: Final = "<[256]>"
"""The first token behind the bytes of llguidance's byte tokenizer, which refuses the ids of a model's tokens."""


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Compiles a grammar and computes its first mask.

    Raises:
        ValueError: the grammar is invalid or too large, or no text matches; the message says what is wrong.
    """
    limits = LLParserLimits(max_lexer_states=STATES, max_items_in_row=ROW_ITEMS, verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        first = matcher.deep_copy()
        first.compute_bitmask()
        if not first.is_error():
            return matcher
        matcher = first
    raise ValueError(reason_of_grammar(matcher.get_error()))


def reason_of_grammar(message: str) -> str:
    """Returns the part of llguidance's message that says what is wrong, on one line."""
    lines = [line.strip() for line in message.partition("<state>")[0].splitlines() if line.strip()]
    parse_error = next((line for line in reversed(lines) if line.startswith(_PARSE_ERROR)), None)
    text = parse_error.removeprefix(_PARSE_ERROR) if parse_error else (lines or ["no text matches"])[0]
    if text.startswith("NoExtension"):
        text = "no text matches"
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def main() -> int:
    """Compiles the grammar on standard input; returns the exit code."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    try:
        grammar = sys.stdin.buffer.read().decode()
        compile_grammar(LLTokenizer("byte"), _SPECIAL_TOKEN.sub(_STAND_IN, grammar))
    except ValueError as error:
        print(error)
        return 1
    except MemoryError:
        print("it takes too much memory to compile")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
