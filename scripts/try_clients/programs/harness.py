"""Runs the checks of a client, and reports each outcome as a line of JSON on stdout."""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

URL: Final = os.environ.get("TRIED_URL", "")
"""Base URL of the API, with `/v1`."""

DEMANDING_URL: Final = os.environ.get("TRIED_DEMANDING_URL", "")
"""The same, through the forwarder that demands calls, for clients that cannot demand one."""

MODEL: Final = os.environ.get("TRIED_MODEL", "")
"""Name of the served model."""

METRICS_URL: Final = os.environ.get("TRIED_METRICS_URL", "")
"""The router's metrics; empty where nobody told."""

QUESTION: Final = "How is the weather in Rome?"
RESULT: Final = "sunny"
TOKENS: Final = 24
"""Length of the answers that only have to exist."""

JSON_TOKENS: Final = 1_000
"""Limit of answers that have to be JSON: a small model writes many blanks into it."""

LONG_TOKENS: Final = 16_000
"""Length of an answer that a client breaks off."""

END_S: Final = 20.0
CANCELLED: Final = 'zipmoe_requests_total{outcome="cancelled"}'
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}, "days": {"type": "integer", "enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION: Final[dict[str, Any]] = {"name": "weather", "description": "Tells the weather.", "parameters": SCHEMA}
TOOL: Final[dict[str, Any]] = {"type": "function", "function": FUNCTION}


class NotOffered(Exception):
    """The client has no such thing."""


Check = Callable[[], str | None]
"""Does one thing with a client. Returns a remark, or None; an error is the outcome `failed`."""


def check_fits(value: object) -> None:
    """Holds that a JSON value fits `SCHEMA`.

    Raises:
        AssertionError: it does not.
    """
    fits = isinstance(value, dict) and value.keys() == {"city", "days"}
    assert fits and value["city"] in ("Rome", "Paris") and value["days"] in (1, 2), f"breaks the schema: {value!r}"


def router_metric(start: str) -> float:
    """Returns the value of the router's series whose name and labels are these."""
    with urllib.request.urlopen(METRICS_URL, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    start += " "
    return next(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def check_cancelled(abort: Callable[[], None]) -> str | None:
    """Holds that the router cancels the request of a stream that a client breaks off.

    Args:
        abort: begins a stream, reads some of it and breaks it off. The client stays alive after that.

    Raises:
        AssertionError: the request has not been cancelled 20 s later.
    """
    if not METRICS_URL:
        abort()
        return "the request's end was not observed: no --metrics-url"
    before = router_metric(CANCELLED)
    abort()
    deadline = time.monotonic() + END_S
    while router_metric(CANCELLED) == before:
        assert time.monotonic() < deadline, f"the router has not cancelled the request within {END_S:g} s"
        time.sleep(0.05)
    return None


def report(**fields: object) -> None:
    """Writes a line of JSON."""
    print(json.dumps(fields), flush=True)


def run(package: str, checks: Mapping[str, Check], release: str | None = None) -> None:
    """Reports the version of a client, then runs its checks and reports their outcomes.

    Args:
        package: name of the installed package.
        checks: the checks by the names of the table's columns.
        release: version of a client that is no Python package.
    """
    report(version=release or version(package))
    for name, check in checks.items():
        try:
            remark = check()
        except NotOffered as error:
            report(check=name, outcome="not offered", reason=str(error))
        except Exception as error:  # reported: every error of a client is an outcome
            report(check=name, outcome="failed", reason=f"{type(error).__name__}: {error}")
        else:
            report(check=name, outcome="ok", reason=remark or "")
