"""The result of a check."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Verdict(enum.StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARN = "warn"
    """Works, but slower or less safely than it could."""

    FAIL = "fail"
    """Does not work."""


class Finding(NamedTuple):
    """A line of the diagnosis.

    Attributes:
        name: subject of the check.
        verdict: severity of the finding.
        found: observation, with numbers.
        advice: remedy for a person; empty if nothing has to be done.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Finding:
    """Creates a finding for a subject that needs no remedy."""
    return Finding(name, Verdict.OK, found)


def warn(name: str, found: str, advice: str) -> Finding:
    """Creates a finding for a subject that works, but could be better."""
    return Finding(name, Verdict.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Finding:
    """Creates a finding for a subject that does not work."""
    return Finding(name, Verdict.FAIL, found, advice)
