"""How long the Python files are."""

from __future__ import annotations

import statistics
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.tree_figures.module import Module, docstrings, tokens

NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(frozen=True)
class Sizes:
    """How long a number of files are, in lines."""

    files: int
    median: float
    longest: int
    longest_path: str
    code_lines: int
    docstrings: int


def count_lines(module: Module) -> int:
    """Counts all lines of a file."""
    return len(module.text.splitlines())


def count_code_lines(module: Module) -> int:
    """Counts the lines of a file that hold code: no docstring, not only a comment, not blank."""
    lines = module.text.split("\n")
    code = {
        number
        for token in tokens(module)
        if token.type not in NOT_CODE
        for number in range(token.start[0], token.end[0] + 1)
        if lines[number - 1].strip()
    }
    texts = docstrings(module)
    return len(code - {number for text in texts for number in range(text.first_line, text.last_line + 1)})


def measure_sizes(modules: Sequence[Module]) -> Sizes:
    """Measures the files together."""
    longest = max(modules, key=count_lines, default=None)
    return Sizes(
        files=len(modules),
        median=statistics.median(map(count_lines, modules)) if modules else 0,
        longest=count_lines(longest) if longest else 0,
        longest_path=str(longest.path) if longest else "",
        code_lines=sum(map(count_code_lines, modules)),
        docstrings=sum(len(list(docstrings(module))) for module in modules),
    )
