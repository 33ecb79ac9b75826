"""The command `llm`, with a model of its `extra-openai-models.yaml`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from scripts.try_clients.programs.harness import (
    DEMANDING_URL,
    JSON_TOKENS,
    LONG_TOKENS,
    MODEL,
    QUESTION,
    SCHEMA,
    TOKENS,
    URL,
    check_cancelled,
    check_fits,
    run,
)

MODELS = f"""- model_id: tried
  model_name: {MODEL}
  api_base: {URL}
  supports_schema: true
- model_id: calling
  model_name: {MODEL}
  api_base: {DEMANDING_URL}
  supports_tools: true
"""
FUNCTIONS = """
import typing

def weather(city: typing.Literal["Rome", "Paris"], days: typing.Literal[1, 2]) -> str:
    "Tells the weather."
    return "sunny in " + city
"""


def _command(*words: object, model: str = "tried", tokens: int = TOKENS) -> list[str]:
    return [sys.executable, "-m", "llm", "prompt", "-m", model, "-o", "max_tokens", str(tokens), *map(str, words)]


def _llm(command: list[str]) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, f"exit code {ran.returncode}: {ran.stderr.strip()[-300:]}"
    return ran


def chat() -> None:
    """Asks without a stream."""
    assert _llm(_command("--no-stream", "-s", "Be brief.", QUESTION)).stdout.strip()


def stream() -> None:
    """Asks with a stream, as `llm` does by default."""
    assert _llm(_command("-s", "Be brief.", QUESTION)).stdout.strip()


def tools() -> str:
    """Has a call made, which `llm` runs and answers."""
    ran = _llm(_command("--functions", FUNCTIONS, "--td", QUESTION, model="calling", tokens=JSON_TOKENS))
    assert "sunny in " in ran.stderr, f"the tool was not called: {ran.stderr[-200:]!r}"
    assert ran.stdout.strip()
    return "the call was demanded on the way: llm cannot"


def json_schema() -> None:
    """Has an answer written that fits a schema."""
    check_fits(json.loads(_llm(_command("--schema", json.dumps(SCHEMA), QUESTION, tokens=JSON_TOKENS)).stdout))


def cancel() -> str | None:
    """Sends Ctrl-C to a stream."""

    def abort() -> None:
        with subprocess.Popen(
            _command(QUESTION, tokens=LONG_TOKENS), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.read(1), "no byte of the answer came"
            process.send_signal(signal.SIGINT)
            process.stdout.read()

    return check_cancelled(abort)


if __name__ == "__main__":
    release = version("llm")
    Path(os.environ["LLM_USER_PATH"]).mkdir(parents=True, exist_ok=True)
    (Path(os.environ["LLM_USER_PATH"]) / "extra-openai-models.yaml").write_text(MODELS)
    run("llm", {"chat": chat, "stream": stream, "tools": tools, "JSON schema": json_schema, "cancel": cancel}, release)
