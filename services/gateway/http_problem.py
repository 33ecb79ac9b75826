"""Errors as OpenAI's clients know them: a status code, and a body with message, type, param and code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from zipmoe import errors
from zipmoe.errors import ZipMoeError

INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"

#: Status code and OpenAI's `type` of each class; a class that is not here counts as the nearest base that is.
STATUS_OF: Final[dict[type[ZipMoeError], tuple[int, str]]] = {
    ZipMoeError: (500, _SERVER),
    errors.InvalidRequest: (400, INVALID),
    errors.NotFound: (404, INVALID),
    errors.ResourceExhausted: (429, "rate_limit_error"),
    errors.StaleSlot: (503, _SERVER),
    errors.SlotLeased: (503, _SERVER),
    errors.UnsupportedStore: (500, _SERVER),
    errors.UnsupportedModel: (500, _SERVER),
    errors.StoreMismatch: (500, _SERVER),
    errors.BudgetInfeasible: (500, _SERVER),
    errors.AlreadyRunning: (500, _SERVER),
    errors.CorruptData: (500, _SERVER),
    errors.Unavailable: (503, _SERVER),
    errors.DeadlineExceeded: (504, _SERVER),
    errors.Cancelled: (503, _SERVER),
    # The gateway's own token is wrong, which no client can mend; a client's wrong key is a `HttpProblem` of its own.
    errors.Unauthenticated: (502, _SERVER),
    errors.InternalError: (500, _SERVER),
}

_RETRY_UNAVAILABLE_S = 1.0


@dataclass(eq=False)
class HttpProblem(Exception):
    """Why a request is answered with an error.

    Attributes:
        status: HTTP status code.
        message: what went wrong, with numbers.
        kind: OpenAI's `type`.
        param: the parameter at fault.
        code: a word for programs.
        retry_after_s: when a retry may succeed.
        headers: more headers of the answer.
    """

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON that clients read, also as the last event of a stream that fails half-way."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def all_headers(self) -> dict[str, str]:
        """Headers of the answer. `Retry-After` knows whole seconds; OpenAI's clients prefer `retry-after-ms`."""
        if self.retry_after_s is None:
            return self.headers
        waiting = {
            "retry-after": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }
        return {**waiting, **self.headers}


def problem_of(error: ZipMoeError) -> HttpProblem:
    """Describes an error of the router, or of the client that talks to it."""
    status, kind = next(STATUS_OF[base] for base in type(error).__mro__ if base in STATUS_OF)
    message = f"{error.message}; {error.diagnostics()}" if status < 500 or status == 503 else error.message
    retry_after_s = None
    if isinstance(error, errors.ResourceExhausted):
        retry_after_s = error.retry_after_s
    elif status == 503:
        retry_after_s = _RETRY_UNAVAILABLE_S
    return HttpProblem(status, message, kind, code=_code(error), retry_after_s=retry_after_s)


def bug() -> HttpProblem:
    """What is told of an error that nobody expected: nothing; the log has it."""
    return HttpProblem(500, "internal error; its details are in the gateway's log", _SERVER, code="internal_error")


def _code(error: ZipMoeError) -> str:
    """The class's name as OpenAI writes codes: `ResourceExhausted` is `resource_exhausted`."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
