"""Finds every refusal that these verbs can end with, by a walk through the syntax trees of the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zipmoe import errors

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (
    "zipmoe/model", "zipmoe/store", "zipmoe/planning", "zipmoe/calibration", "zipmoe/codec", "zipmoe/cli",
    "zipmoe/process", "zipmoe/arena/headroom.py", "zipmoe/regular_file.py", "services/router",
)  # fmt: skip
OTHER_VERBS = ("zipmoe/cli/benching", "zipmoe/cli/talking", "zipmoe/cli/watching", "zipmoe/cli/planning/simul")
"""Verbs that take no checkpoint, store or memory budget of the user."""

BUGS = ("InternalError",)
"""Classes that refuse nothing: their message is for us."""

_CLASSES = {name for name, each in vars(errors).items() if isinstance(each, type) and each.__name__ not in BUGS}


@dataclass(frozen=True, order=True)
class Site:
    """A place that makes an error: the file, the error's class, and its message with `{}` for each value."""

    file: str
    error: str
    message: str

    def made(self, message: str) -> bool:
        """Whether a message can be of this place."""
        parts = map(re.escape, self.message.split("{}"))
        return re.fullmatch(".*".join(parts), message, re.DOTALL) is not None


@cache
def sites() -> frozenset[Site]:
    """All places. Those of one file with the same class and message count as one."""
    return frozenset(site for path in _files() for site in _sites_of(path))


def _files() -> Iterator[Path]:
    for name in FOLDERS:
        for path in [ROOT / name] if name.endswith(".py") else sorted((ROOT / name).rglob("*.py")):
            if not str(path.relative_to(ROOT)).startswith(OTHER_VERBS):
                yield path


def _sites_of(path: Path) -> Iterator[Site]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CLASSES:
            yield Site(str(path.relative_to(ROOT)), node.func.id, _template(node.args[0]))


def _template(message: ast.expr) -> str:
    """The text of a message as far as the source has it."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(map(_template, message.values))
    if isinstance(message, ast.BinOp):
        return _template(message.left) + _template(message.right)
    return "{}"
