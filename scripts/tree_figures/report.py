"""The figures in print: aligned text for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from scripts.tree_figures.figures import Figures
from scripts.tree_figures.limits import (
    FILES_IN_A_FOLDER,
    LINES_OF_A_MAP,
    WHAT_IN_A_THOUSAND,
    WHO_IN_A_THOUSAND,
    violations,
)
from scripts.tree_figures.prose import Words

WIDEST_FOLDERS = 15


def table(title: str, rows: Iterable[Sequence[object]]) -> str:
    """Sets rows below a title, in columns that are as wide as their longest cell."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def places_table(title: str, places: Mapping[str, Sequence[str]]) -> str:
    """Sets names below a title, each with the number of its places and the places."""
    ordered = sorted(places, key=lambda name: (-len(places[name]), name))
    return table(f"{title}: {len(places)}", [(name, len(places[name]), " ".join(places[name])) for name in ordered])


def words_row(words: Words) -> tuple[object, ...]:
    """Sets the words of a place in a row."""
    rates = f"{words.what_in_a_thousand:.2f}", f"{words.who_in_a_thousand:.2f}"
    return words.place, words.words, words.what, words.who, *rates


def words_table(figures: Figures) -> str:
    """Sets the words of all files and of the worst files in a table."""
    limits = f"limits {WHAT_IN_A_THOUSAND} what and {WHO_IN_A_THOUSAND} who in a thousand words"
    head = ("place", "words", "what", "who", "what/1000", "who/1000")
    return table(
        f"words of docstrings and comments, {limits}",
        [head, words_row(figures.words), *map(words_row, figures.worst_words)],
    )


def as_text(figures: Figures, *, with_sentences: bool = False) -> str:
    """Sets all figures in tables."""
    folders = [(count, folder) for folder, count in figures.folders.items()]
    wide = sum(count > FILES_IN_A_FOLDER for count in figures.folders.values())
    bare = [p for p in figures.packages if p.docstring_lines < LINES_OF_A_MAP or p.statements]
    head = ("path", "docstring lines", "statements")
    tables = [
        table(
            f"source files in a folder, limit {FILES_IN_A_FOLDER}: {wide} of {len(folders)} folders have more",
            folders[: max(wide, WIDEST_FOLDERS)],
        ),
        places_table("class names in more than one file, limit 0", figures.classes),
        words_table(figures),
        table("sizes of the Python files in zipmoe and services", dataclasses.asdict(figures.sizes).items()),
        table(
            f"first sentences with more than two pronouns: {len(figures.sentences)}",
            [(sentence,) for sentence in figures.sentences if with_sentences],
        ),
        places_table("file names in more than one folder, roles left out, limit 0", figures.names),
        table(
            f"packages with less than {LINES_OF_A_MAP} lines of docstring, or with code: {len(bare)} of"
            f" {len(figures.packages)}, limit 0",
            [head, *((package.path, package.docstring_lines, package.statements) for package in bare)],
        ),
    ]
    return "\n\n".join(tables)


def as_json(figures: Figures) -> str:
    """Writes all figures, and the broken limits, as one JSON object."""
    rates = {
        "what_in_a_thousand": figures.words.what_in_a_thousand,
        "who_in_a_thousand": figures.words.who_in_a_thousand,
        "violations": [dataclasses.asdict(violation) for violation in violations(figures)],
    }
    return json.dumps(dataclasses.asdict(figures) | rates, indent=2)
