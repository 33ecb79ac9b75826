"""The command line explains itself, and starts without the libraries that take seconds to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.run import zipmoe, zipmoe_process
from zipmoe import __version__

VERBS = [
    "pack",
    "verify",
    "inspect",
    "synth",
    "families",
    "plan",
    "simulate",
    "calibrate",
    "doctor",
    "bench",
    "up",
    "expert-store",
    "decoder",
    "router",
    "gateway",
    "health",
    "top",
    "demo",
    "generate",
    "chat",
]
SERVICES = ["expert-store", "decoder", "router", "gateway"]
OWN_VERBS = [verb for verb in VERBS if verb not in SERVICES]
WITH_RESULT = [(verb,) for verb in OWN_VERBS if verb not in ("chat", "bench")] + [
    ("bench", "codec"),
    ("bench", "ffn"),
    ("bench", "serve"),
]


def test_help_lists_every_verb() -> None:
    ran = zipmoe("--help")
    assert ran.exit_code == 0
    listed = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("│ ") and line[2] != " "]
    assert [name for name in listed if not name.startswith("-")] == VERBS


@pytest.mark.parametrize("verb", OWN_VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    ran = zipmoe(verb, "--help")
    assert ran.exit_code == 0
    assert f"Usage: zipmoe {verb}" in ran.stdout


@pytest.mark.parametrize("words", WITH_RESULT)
def test_every_verb_with_a_result_has_json(words: tuple[str, ...]) -> None:
    assert "--json" in zipmoe(*words, "--help").stdout


@pytest.mark.parametrize("verb", SERVICES)
def test_the_help_of_a_service_is_its_own(verb: str) -> None:
    ran = zipmoe_process(verb, "--help", env={"COLUMNS": "200"})
    assert ran.exit_code == 0
    assert "--metrics-port" in ran.stdout


def test_arguments_of_a_service_are_its_own() -> None:
    ran = zipmoe_process("expert-store", "--no-such-flag", "--json", "--store", "/nonexistent")
    assert ran.exit_code == 2
    assert "--no-such-flag" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_no_arguments_show_the_help() -> None:
    assert "Usage: zipmoe" in zipmoe().stdout


def test_the_version_is_that_of_the_package() -> None:
    assert zipmoe_process("--version").stdout == f"zipmoe {__version__}\n"


def test_the_command_line_imports_no_heavy_library() -> None:
    code = "import sys, zipmoe.cli.__main__; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "grpc", "numpy", "pydantic"} & set(loaded)


def test_health_imports_no_heavy_library() -> None:
    code = (
        "import sys, contextlib, zipmoe.cli.__main__ as m\n"
        "with contextlib.suppress(SystemExit):\n"
        "    m.app(['health', 'unix:/nonexistent'])\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, loaded = ran.stdout.splitlines()
    assert "UNREACHABLE" in first
    assert not {"torch", "transformers", "numpy", "pydantic_settings"} & set(loaded.split())
