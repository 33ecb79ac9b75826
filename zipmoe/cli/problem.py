"""Reports a failed command with the next step, in words for people or as JSON for programs."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import dataclass

from zipmoe.errors import (
    BudgetInfeasible,
    InvalidRequest,
    NotFound,
    StoreMismatch,
    Unauthenticated,
    UnsupportedModel,
    UnsupportedStore,
    ZipMoeError,
)
from zipmoe.system_error import reason_of

USAGE_EXIT_CODE = 2
"""The command as given can never succeed: the caller has to change it."""

FAILURE_EXIT_CODE = 1
"""The command is fine, but it failed this time."""

INTERRUPTED_EXIT_CODE = 130
"""128 + SIGINT, as in shells."""

_USAGE_ERRORS = (
    BudgetInfeasible,
    InvalidRequest,
    NotFound,
    StoreMismatch,
    Unauthenticated,
    UnsupportedModel,
    UnsupportedStore,
)

_NEXT_STEPS = {
    errno.EACCES: "check the permissions, or run as the owner",
    errno.EPERM: "check the permissions, or run as the owner",
    errno.EROFS: "choose a place that can be written to",
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOENT: "check the name or path",
    errno.ENOTDIR: "check the name or path",
    errno.EEXIST: "check the name or path",
    errno.EISDIR: "check the name or path",
}


@dataclass(frozen=True)
class Problem:
    """An expected failure: class of the error, message, next step and exit code."""

    kind: str
    message: str
    next_step: str
    exit_code: int

    def print(self, *, as_json: bool) -> None:
        """Writes the problem to stderr: two lines for a person, one JSON object for a program."""
        if as_json:
            fields = {"class": self.kind, "message": self.message, "next_step": self.next_step}
            print(json.dumps({"error": fields}), file=sys.stderr)
            return
        print(f"error: {self.message}", file=sys.stderr)
        if self.next_step:
            print(f"  what to do: {self.next_step}", file=sys.stderr)


def problem_of(error: BaseException) -> Problem | None:
    """Describes an expected failure. Returns None for any other error, which is a bug and keeps its traceback."""
    if isinstance(error, ZipMoeError):
        code = USAGE_EXIT_CODE if isinstance(error, _USAGE_ERRORS) else FAILURE_EXIT_CODE
        return Problem(type(error).__name__, error.message, error.diagnostics(), code)
    if isinstance(error, KeyboardInterrupt):
        return Problem("Interrupted", "interrupted", "", INTERRUPTED_EXIT_CODE)
    if isinstance(error, OSError) and error.errno is not None:
        reason = reason_of(error)
        message = reason if error.filename is None else f"{reason}: {error.filename}"
        return Problem(type(error).__name__, message, _NEXT_STEPS.get(error.errno, ""), FAILURE_EXIT_CODE)
    # click's own errors (unknown option, missing argument) have these two attributes.
    describe, exit_code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if callable(describe) and isinstance(exit_code, int):
        return Problem("UsageError", str(describe()), "see `zipmoe --help` and `zipmoe VERB --help`", exit_code)
    return None
