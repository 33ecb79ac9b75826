"""All measures of a tree, gathered in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.tree_figures.files import source_files
from scripts.tree_figures.layout import Package, folder_sizes, measure_packages, shared_classes, shared_names
from scripts.tree_figures.module import read_modules, within
from scripts.tree_figures.prose import Words, add_words, count_words, most_counted, vague_sentences
from scripts.tree_figures.sizes import Sizes, measure_sizes

CLASS_FOLDERS = ("zipmoe", "services", "benchmarks", "demo", "tests")
PACKAGE_FOLDERS = ("zipmoe", "services")
WORST_FILES = 10


@dataclass(frozen=True)
class Figures:
    """The measures of a tree; `folders` counts files, `classes` and `names` list the places of each shared name."""

    folders: Mapping[str, int]
    classes: Mapping[str, Sequence[str]]
    words: Words
    worst_words: Sequence[Words]
    sizes: Sizes
    sentences: Sequence[str]
    names: Mapping[str, Sequence[str]]
    packages: Sequence[Package]


def measure(root: Path) -> Figures:
    """Measures the tree below a folder.

    Raises:
        FileNotFoundError: the folder holds no source file, so that every limit would hold for nothing.
    """
    paths = source_files(root)
    if not paths:
        raise FileNotFoundError(f"no source files in {root}")
    modules = read_modules(root, paths)
    packaged = within(modules, PACKAGE_FOLDERS)
    counts = [count_words(module) for module in packaged]
    return Figures(
        folders=folder_sizes(paths),
        classes=shared_classes(within(modules, CLASS_FOLDERS)),
        words=add_words(" ".join(PACKAGE_FOLDERS), counts),
        worst_words=most_counted(counts)[:WORST_FILES],
        sizes=measure_sizes(packaged),
        sentences=vague_sentences(packaged),
        names=shared_names(packaged),
        packages=measure_packages(packaged),
    )
