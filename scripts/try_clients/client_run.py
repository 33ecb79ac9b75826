"""Runs the program of a client, and gathers its outcomes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.try_clients.client_table import CHECKS, Client

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LIMIT_S: Final = 300.0
"""Limit of all checks of a client together."""

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        word: `ok`, `failed`, `not offered` (the client has no such thing) or `not installed`.
        reason: reason of a failure, or a remark.
    """

    word: str
    reason: str = ""


@dataclass(frozen=True)
class Tried:
    """A client that was tried: its version, and an outcome for each check."""

    name: str
    version: str
    outcomes: Mapping[str, Outcome]

    @property
    def has_failed(self) -> bool:
        """Whether a check has failed."""
        return any(outcome.word == "failed" for outcome in self.outcomes.values())


def try_client(client: Client, places: Mapping[str, str]) -> Tried:
    """Runs a client's program, with an environment that holds hardly more than the places of the gateway.

    Args:
        client: the client.
        places: further variables of the environment: the URLs and the model (`programs/harness.py`).
    """
    if client.command is None:
        return _absent(client, f"no {client.place}")
    with tempfile.TemporaryDirectory(prefix="client") as home:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment |= {"HOME": home, "OPENAI_API_KEY": "none", "LLM_USER_PATH": f"{home}/llm"}
        environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": "1", **places}
        problem = _problem(client.present, environment)
        if problem is not None:
            return _absent(client, problem)
        try:
            ran = subprocess.run(
                client.command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
                timeout=LIMIT_S,
            )  # fmt: skip
            printed, missing = ran.stdout, f"exit code {ran.returncode}: {ran.stderr.strip()[-300:]}"
        except subprocess.TimeoutExpired as expired:
            printed, missing = _text(expired.stdout), f"no outcome within {LIMIT_S:g} s"
    return gathered(client.name, printed, missing)


def gathered(name: str, printed: str, missing: str) -> Tried:
    """Gathers the outcomes that a program has printed.

    Args:
        name: name of the client.
        printed: lines of JSON, as `programs/harness.py` writes them, among other lines.
        missing: reason of the checks without an outcome.
    """
    reports = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    release = next((each["version"] for each in reports if "version" in each), "")
    outcomes = {each["check"]: Outcome(each["outcome"], each["reason"]) for each in reports if "check" in each}
    return Tried(name, release, {check: outcomes.get(check, Outcome("failed", missing)) for check in CHECKS})


def _absent(client: Client, reason: str) -> Tried:
    return Tried(client.name, "", {check: Outcome("not installed", reason) for check in CHECKS})


def _problem(present: Sequence[str], environment: Mapping[str, str]) -> str | None:
    try:
        ran = subprocess.run(present, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return None if ran.returncode == 0 else f"{present[0]} does not find it"


def _text(printed: bytes | str | None) -> str:
    return printed.decode(errors="replace") if isinstance(printed, bytes) else printed or ""
