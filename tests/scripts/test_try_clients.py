"""The script that tries real clients: absent clients, outcomes, demanded calls."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from scripts.try_clients.call_demander import demanding, demanding_calls
from scripts.try_clients.client_run import Outcome, Tried, gathered, try_client
from scripts.try_clients.client_table import CHECKS, Installed, clients
from scripts.try_clients.outcome_table import as_table
from scripts.try_clients.programs import harness

REPOSITORY = Path(__file__).parents[2]
OFFERED = {"tools": [{"function": {"name": "f", "parameters": {"type": "object"}}}]}


def test_a_client_without_a_place_has_a_row_that_names_the_option() -> None:
    rows = clients(Installed(None, None, None), sys.executable)
    for row in rows:
        tried = try_client(row, {})
        assert tried.outcomes == {check: Outcome("not installed", f"no {row.place}") for check in CHECKS}
        assert not tried.has_failed
    assert {row.place for row in rows} == {"--clients", "--node", "--opencode"}


def test_a_client_that_is_not_in_its_place_has_a_row_that_says_so(tmp_path: Path) -> None:
    missing = Installed(tmp_path / "python", tmp_path, tmp_path / "opencode")
    for row in clients(missing, sys.executable):
        assert {outcome.word for outcome in try_client(row, {}).outcomes.values()} == {"not installed"}


def test_checks_without_an_outcome_have_failed() -> None:
    printed = '{"version": "1.2"}\nnoise\n{"check": "chat", "outcome": "ok", "reason": ""}\n'
    tried = gathered("x", printed, "exit code 1: gone")
    assert (tried.version, tried.has_failed) == ("1.2", True)
    assert tried.outcomes == {
        "chat": Outcome("ok"), **dict.fromkeys(CHECKS[1:], Outcome("failed", "exit code 1: gone"))
    }  # fmt: skip


def test_the_table_has_each_reason_once_with_its_checks() -> None:
    outcomes = {"chat": Outcome("ok"), **dict.fromkeys(CHECKS[1:], Outcome("failed", "no\nbyte"))}
    assert as_table([Tried("x", "1", outcomes), Tried("y", "", dict.fromkeys(CHECKS, Outcome("ok")))]).splitlines() == [
        "| client | version | chat | stream | tools | JSON schema | cancel |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| x | 1 | ok | failed | failed | failed | failed |",
        "| y | - | ok | ok | ok | ok | ok |",
        "",
        "x, stream, tools, JSON schema, cancel: failed: no byte",
    ]


def test_errors_of_a_client_are_outcomes(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        raise ValueError("no")

    def has_none() -> None:
        raise harness.NotOffered("none")

    harness.run("x", {"chat": lambda: None, "stream": fails, "tools": has_none, "cancel": lambda: "seen"}, "3")
    tried = gathered("x", capsys.readouterr().out, "missing")
    assert tried.version == "3"
    assert [tried.outcomes[check] for check in ("chat", "stream", "tools", "cancel")] == [
        Outcome("ok"), Outcome("failed", "ValueError: no"), Outcome("not offered", "none"), Outcome("ok", "seen")
    ]  # fmt: skip


def test_a_call_is_demanded_until_its_result_is_there() -> None:
    def changed(role: str) -> object:
        return json.loads(demanding(json.dumps({**OFFERED, "messages": [{"role": role}]}).encode()))

    parameters = {"type": "object", "additionalProperties": False}
    assert changed("user") == {
        "tools": [{"function": {"name": "f", "parameters": parameters}}],
        "messages": [{"role": "user"}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    assert changed("tool") == {**OFFERED, "messages": [{"role": "tool"}]}
    assert json.loads(demanding(b'{"messages": [{"role": "user"}]}')) == {"messages": [{"role": "user"}]}


class _Echo(BaseHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(202)
        self.send_header("x-path", self.path)
        self.end_headers()
        self.wfile.write(body)


def test_requests_are_forwarded_with_status_headers_and_body() -> None:
    with HTTPServer(("127.0.0.1", 0), _Echo) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with demanding_calls(f"http://127.0.0.1:{server.server_port}/v1") as url:
            request = urllib.request.Request(f"{url}/chat", data=json.dumps({"messages": []}).encode())
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert (answer.status, answer.headers["x-path"]) == (202, "/v1/chat")
                assert json.load(answer) == {"messages": []}
        server.shutdown()
        thread.join()


def test_unknown_names_are_refused_before_anything_runs() -> None:
    command = [sys.executable, "-m", "scripts.try_clients", "--only", "netscape"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no client is named netscape; there are openai-python, anthropic" in ran.stderr
