"""The agent `opencode`, with two of its tools and a short prompt of its own; the first argument is its binary.

With all tools its first request has 11,600 tokens of the built-in model, whose prefill takes more than a minute.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.try_clients.programs.harness import (
    DEMANDING_URL,
    METRICS_URL,
    MODEL,
    QUESTION,
    URL,
    NotOffered,
    check_cancelled,
    router_metric,
    run,
)

BINARY = sys.argv[1]
CONTEXT_TOKENS, ANSWER_TOKENS = 32_768, 300
START_S, RUN_S = 60.0, 90.0


def _provider(url: str, answer_tokens: int) -> dict[str, Any]:
    model = {"name": MODEL, "tool_call": True, "limit": {"context": CONTEXT_TOKENS, "output": answer_tokens}}
    options = {"baseURL": url, "apiKey": "none"}
    return {"npm": "@ai-sdk/openai-compatible", "name": "tried", "options": options, "models": {MODEL: model}}


CONFIG = {
    "$schema": "https://opencode.ai/config.json",
    "autoupdate": False,
    "share": "disabled",
    "provider": {
        "tried": _provider(URL, ANSWER_TOKENS),
        "calling": _provider(DEMANDING_URL, ANSWER_TOKENS),
        "endless": _provider(URL, CONTEXT_TOKENS // 2),
    },
    "permission": {"*": "allow"},
    "agent": {"build": {"prompt": "Be brief."}},
    "tools": {"*": False, "glob": True, "read": True},
}


def _command(provider: str) -> list[str]:
    model = f"{provider}/{MODEL}"
    return [BINARY, "run", "--model", model, "--format", "json", QUESTION]


def _events(provider: str) -> list[dict[str, Any]]:
    ran = subprocess.run(
        _command(provider), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=RUN_S
    )
    assert ran.returncode == 0, f"exit code {ran.returncode}: {(ran.stdout + ran.stderr).strip()[-600:]}"
    events = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    errors = [event for event in events if event.get("type") == "error"]
    assert not errors, json.dumps(errors)[:600]
    assert events, f"no event: {ran.stderr.strip()[-600:]}"
    return events


def chat() -> None:
    """Tells that opencode asks for no whole answer."""
    raise NotOffered("opencode streams always")


def stream() -> None:
    """Asks."""
    assert any(event["type"] == "text" for event in _events("tried"))


def tools() -> str:
    """Has a call of one of its own tools made, which opencode runs and answers."""
    kinds = [event["type"] for event in _events("calling")]
    assert "tool_use" in kinds, f"no tool was called: {kinds}"
    return "the call was demanded on the way: opencode cannot"


def json_schema() -> None:
    """Tells that `opencode run` takes no schema."""
    raise NotOffered("opencode run takes no schema")


def cancel() -> str | None:
    """Interrupts opencode while the router generates."""

    def abort() -> None:
        with subprocess.Popen(
            _command("endless"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            deadline = time.monotonic() + START_S
            while router_metric("zipmoe_requests_running") < 1:
                assert time.monotonic() < deadline and process.poll() is None, "no request reached the router"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            process.wait(START_S)

    if not METRICS_URL:
        raise NotOffered("without --metrics-url nobody tells when to interrupt")
    return check_cancelled(abort)


if __name__ == "__main__":
    work = Path(os.environ["HOME"]) / "work"
    work.mkdir()
    os.chdir(work)
    (work / "opencode.json").write_text(json.dumps(CONFIG))
    release = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    checks = {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel}
    run("opencode", checks, release)
