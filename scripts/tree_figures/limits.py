"""The limits of a readable tree, and the places that break a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scripts.tree_figures.figures import Figures
from scripts.tree_figures.layout import Package
from scripts.tree_figures.prose import Words

FILES_IN_A_FOLDER = 18
WHAT_IN_A_THOUSAND = 3.0
WHO_IN_A_THOUSAND = 0.5
LINES_OF_A_MAP = 5


@dataclass(frozen=True)
class Violation:
    """A limit that is broken: the place, the figure that was measured there, and the limit."""

    place: str
    figure: str
    limit: str

    def __str__(self) -> str:
        return f"{self.place}: {self.figure}, limit {self.limit}"


def wide_folders(figures: Figures) -> Iterator[Violation]:
    """Finds the folders that hold too many files."""
    for folder, count in figures.folders.items():
        if count > FILES_IN_A_FOLDER:
            yield Violation(folder, f"{count} source files", str(FILES_IN_A_FOLDER))


def repeated_names(figures: Figures) -> Iterator[Violation]:
    """Finds the classes and files that share a name."""
    for name, places in figures.classes.items():
        files = {place.rpartition(":")[0] for place in places}
        yield Violation(" ".join(places), f"class {name} in {len(files)} files", "1")
    for name, places in figures.names.items():
        yield Violation(" ".join(places), f"file name {name} in {len(places)} folders", "1")


def frequent_words(words: Words) -> Iterator[Violation]:
    """Finds the pointing words that are too frequent."""
    if words.what_in_a_thousand > WHAT_IN_A_THOUSAND:
        figure = f"{words.what_in_a_thousand:.3f} `what` in a thousand words"
        yield Violation(words.place, figure, str(WHAT_IN_A_THOUSAND))
    if words.who_in_a_thousand > WHO_IN_A_THOUSAND:
        figure = f"{words.who_in_a_thousand:.3f} `who` in a thousand words"
        yield Violation(words.place, figure, str(WHO_IN_A_THOUSAND))


def unmapped_packages(packages: Iterable[Package]) -> Iterator[Violation]:
    """Finds the packages whose `__init__.py` explains too little or holds code."""
    for package in packages:
        if package.docstring_lines < LINES_OF_A_MAP:
            yield Violation(package.path, f"{package.docstring_lines} lines of docstring", f"at least {LINES_OF_A_MAP}")
        if package.statements:
            yield Violation(package.path, f"{package.statements} statements beside the docstring", "0")


def violations(figures: Figures) -> list[Violation]:
    """Finds every limit that is broken."""
    return [
        *wide_folders(figures),
        *repeated_names(figures),
        *frequent_words(figures.words),
        *unmapped_packages(figures.packages),
    ]
