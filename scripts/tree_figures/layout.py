"""How the tree is laid out: folders, file names, class names, and the packages that explain themselves."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from scripts.tree_figures.module import Module

# Names that say which part a file plays in its package; several packages may have a file of such a name.
ROLES = {
    "__init__",
    "__main__",
    "base",
    "boot",
    "cascade",
    "client",
    "config",
    "health",
    "huffman",
    "job",
    "metrics",
    "plan",
    "plot",
    "registry",
    "server",
    "service",
    "session",
    "source",
    "verify",
    "wire",
    "writer",
}
# Statements that an `__init__.py` may hold: in the root the version, which the build reads; in the public client
# the names that it hands on; in services a setting that has to stand before gRPC is imported.
STATEMENTS = {"zipmoe": 1, "zipmoe/client": 99, "services": 2}
GENERATED_PACKAGES = {"v1", "internal"}


@dataclass(frozen=True)
class Package:
    """How many lines the docstring of an `__init__.py` has, and how many statements it holds beside those it may."""

    path: str
    docstring_lines: int
    statements: int


def folder_sizes(paths: Iterable[PurePosixPath]) -> dict[str, int]:
    """Counts the files directly in each folder; the widest folder comes first."""
    return dict(Counter(str(path.parent) for path in paths).most_common())


def shared_classes(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Finds the class names that more than one file defines, each with all its places."""
    places: dict[str, list[tuple[str, int]]] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append((str(module.path), node.lineno))
    shared = {name: sorted(found) for name, found in places.items() if len({path for path, _ in found}) > 1}
    return {name: [f"{path}:{line}" for path, line in shared[name]] for name in sorted(shared)}


def shared_names(modules: Iterable[Module]) -> dict[str, list[str]]:
    """Finds the file names, other than roles, that more than one folder has, each with all its files."""
    paths: dict[str, list[str]] = {}
    for module in modules:
        paths.setdefault(module.path.stem, []).append(str(module.path))
    return {name: paths[name] for name in sorted(paths) if len(paths[name]) > 1 and name not in ROLES}


def measure_package(module: Module) -> Package:
    """Measures one `__init__.py`."""
    text = ast.get_docstring(module.tree) or ""
    count = len(module.tree.body) - bool(text)
    allowed = STATEMENTS.get(str(module.path.parent), 0)
    return Package(str(module.path), len(text.strip().splitlines()), max(0, count - allowed))


def measure_packages(modules: Iterable[Module]) -> list[Package]:
    """Measures every `__init__.py`, except those of generated packages."""
    found = [module for module in modules if module.path.name == "__init__.py"]
    return [measure_package(module) for module in found if module.path.parent.name not in GENERATED_PACKAGES]
