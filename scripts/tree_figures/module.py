"""A Python file, read and parsed once for every measure."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Module:
    """A Python file, read and parsed."""

    path: PurePosixPath
    text: str
    tree: ast.Module


@dataclass(frozen=True)
class Docstring:
    """The docstring of a module, class or function, with its first and last line in the file."""

    text: str
    first_line: int
    last_line: int


def read_module(root: Path, path: PurePosixPath) -> Module:
    """Reads and parses one Python file.

    Raises:
        SyntaxError: the file is no Python.
    """
    text = (root / path).read_text(encoding="utf-8")
    return Module(path, text, ast.parse(text, filename=str(path)))


def read_modules(root: Path, paths: Iterable[PurePosixPath]) -> list[Module]:
    """Reads and parses those of the files that are Python."""
    return [read_module(root, path) for path in paths if path.suffix == ".py"]


def within(modules: Iterable[Module], folders: Iterable[str]) -> list[Module]:
    """Selects the files that lie below any of the folders at the top."""
    tops = set(folders)
    return [module for module in modules if module.path.parts[0] in tops]


def docstrings(module: Module) -> Iterator[Docstring]:
    """Finds every docstring of a file: of itself and of its classes and functions."""
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                statement = node.body[0]
                yield Docstring(text, statement.lineno, statement.end_lineno or statement.lineno)


def tokens(module: Module) -> Iterator[tokenize.TokenInfo]:
    """Cuts a file into its tokens, comments among them."""
    return tokenize.generate_tokens(io.StringIO(module.text).readline)
