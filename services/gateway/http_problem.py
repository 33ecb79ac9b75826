"""Errors as a status code and a body.

OpenAI's form has message, type, param and code, Anthropic's has type and message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from zipmoe import errors
from zipmoe.errors import ZipMoeError

INVALID: Final = "invalid_request_error"
_SERVER: Final = "server_error"

#: Status code and OpenAI's `type` of each error class. A class outside the table counts as its nearest base inside.
HTTP_STATUS_OF: Final[dict[type[ZipMoeError], tuple[int, str]]] = {
    ZipMoeError: (500, _SERVER),
    errors.InvalidRequest: (400, INVALID),
    errors.ContextLengthExceeded: (400, INVALID),
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
    # The router refuses the gateway's token, which no client can correct. For a client's wrong API key,
    # `Gateway` raises an `HttpProblem` itself.
    errors.Unauthenticated: (502, _SERVER),
    errors.InternalError: (500, _SERVER),
}

_RETRY_UNAVAILABLE_S = 1.0


@dataclass(eq=False)
class HttpProblem(Exception):
    """An error answer to an HTTP request.

    Attributes:
        status: HTTP status code.
        message: description of the error, with numbers.
        kind: OpenAI's `type`.
        param: the parameter at fault.
        code: error code for programs.
        retry_after_s: seconds after which a retry may succeed.
        headers: additional headers of the answer.
    """

    status: int
    message: str
    kind: str = INVALID
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """Returns the JSON body, which is also the last event of a stream that fails half-way."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def all_headers(self) -> dict[str, str]:
        """Returns the headers; `Retry-After` takes whole seconds, OpenAI's clients prefer `retry-after-ms`."""
        if self.retry_after_s is None:
            return self.headers
        waiting = {
            "retry-after": str(max(1, math.ceil(self.retry_after_s))),
            "retry-after-ms": str(math.ceil(self.retry_after_s * 1000)),
        }
        return {**waiting, **self.headers}


ErrorForm = Callable[[HttpProblem, str], dict[str, Any]]
"""Makes the body of an error from the problem and the request's id."""

_ANTHROPIC_KINDS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's `type` by status; others are `invalid_request_error` or `api_error`."""


def openai_error(problem: HttpProblem, request_id: str) -> dict[str, Any]:
    """Returns an error in OpenAI's form, which does not repeat the request's id."""
    return problem.body()


def anthropic_error(problem: HttpProblem, request_id: str) -> dict[str, Any]:
    """Returns an error in Anthropic's form, which is also the last event of a stream that fails half-way."""
    kind = _ANTHROPIC_KINDS.get(problem.status, "invalid_request_error" if problem.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": problem.message}, "request_id": request_id}


def problem_of(error: ZipMoeError) -> HttpProblem:
    """Converts an error of the router, or of the gateway's gRPC client, into an HTTP error."""
    status, kind = next(HTTP_STATUS_OF[base] for base in type(error).__mro__ if base in HTTP_STATUS_OF)
    message = f"{error.message}; {error.diagnostics()}" if status < 500 or status == 503 else error.message
    if isinstance(error, errors.ContextLengthExceeded):
        message = message[:1].upper() + message[1:]  # clients look for OpenAI's sentence
    retry_after_s = None
    if isinstance(error, errors.ResourceExhausted):
        retry_after_s = error.retry_after_s
    elif status == 503:
        retry_after_s = _RETRY_UNAVAILABLE_S
    return HttpProblem(status, message, kind, code=_code(error), retry_after_s=retry_after_s)


def unexpected_error() -> HttpProblem:
    """Returns the answer to an unexpected exception; only the log has the details."""
    return HttpProblem(500, "internal error; its details are in the gateway's log", _SERVER, code="internal_error")


def _code(error: ZipMoeError) -> str:
    """Converts a class name to the form of OpenAI's codes: `ResourceExhausted` becomes `resource_exhausted`."""
    name = type(error).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
