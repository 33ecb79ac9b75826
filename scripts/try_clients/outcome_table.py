"""Writes the outcomes of clients as a table of Markdown, with the reasons below it."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.try_clients.client_run import Tried
from scripts.try_clients.client_table import CHECKS


def as_table(tried: Sequence[Tried]) -> str:
    """Returns a row for each client, and a line for each reason and remark."""
    lines = [_row(("client", "version", *CHECKS)), _row(["---"] * (2 + len(CHECKS)))]
    lines += [
        _row((each.name, each.version or "-", *(each.outcomes[check].word for check in CHECKS))) for each in tried
    ]
    return "\n".join([*lines, "", *(line for each in tried for line in _remarks(each))]).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _remarks(tried: Tried) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for check, outcome in tried.outcomes.items():
        if outcome.reason:
            by_reason.setdefault(f"{outcome.word}: {' '.join(outcome.reason.split())}", []).append(check)
    return [f"{tried.name}, {', '.join(checks)}: {reason}" for reason, checks in by_reason.items()]
