"""What a check has found."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Verdict(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works, but slower or less safely than it could."""

    FAIL = "fail"
    """Does not work."""


class Finding(NamedTuple):
    """One line of a diagnosis.

    Attributes:
        name: what was looked at.
        verdict: how it is.
        found: what there is, with numbers.
        advice: what a person can do; empty where nothing has to be done.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Verdict.OK, found)


def warn(name: str, found: str, advice: str) -> Finding:
    """Works, but could be better."""
    return Finding(name, Verdict.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Finding:
    """Does not work."""
    return Finding(name, Verdict.FAIL, found, advice)
