"""Logs speak one dialect: an event is a snake_case name, everything else stands in fields."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What processes that serve log; the command line writes sentences for people.
FOLDERS = ("services", "zipmoe/process", "zipmoe/rpc", "zipmoe/arena")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def events_of(path: Path) -> list[tuple[int, ast.expr]]:
    """Every event that a module logs, with its line."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [
        (call.lineno, call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id.lower().strip("_") in ("log", "logger")
    ]


def test_every_event_is_a_snake_case_name() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    events = [(path, line, event) for path in paths for line, event in events_of(path)]
    assert len(events) > 40, "the walk no longer sees the calls"
    other = [
        f"{path.relative_to(ROOT)}:{line} {ast.unparse(event)}"
        for path, line, event in events
        if not (isinstance(event, ast.Constant) and re.fullmatch(r"[a-z][a-z0-9_]*", str(event.value)))
    ]
    assert other == []
