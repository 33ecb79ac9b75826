"""Starting and ending the gateway as a process: what is refused, and both stages of the end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.cli.fake_router import FakeRouter, running_router
from tests.services.processes import ROOT
from zipmoe.errors import AlreadyRunning, InvalidRequest, NotFound
from zipmoe.process.config import parse_config
from zipmoe.services.gateway import __main__ as gateway
from zipmoe.services.gateway.boot import serve
from zipmoe.services.gateway.config import GatewayConfig


def start(tmp_path: Path, *flags: str) -> None:
    """Starts a gateway in this process, which has to fail."""
    argv = ["--runtime-dir", str(tmp_path), "--metrics-port=0", "--listen=127.0.0.1:0", *flags]
    asyncio.run(serve(parse_config(GatewayConfig, argv)))


def test_an_address_that_others_can_reach_needs_a_key_or_courage(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="can be reached by other machines") as caught:
        start(tmp_path, "--listen=0.0.0.0:0")
    assert "--api-key-file" in caught.value.diagnostics() and "--insecure-listen" in caught.value.diagnostics()


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AlreadyRunning):
        start(tmp_path, f"--listen=127.0.0.1:{taken.getsockname()[1]}")


def test_a_missing_or_empty_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot read the secret"):
        start(tmp_path, f"--api-key-file={tmp_path / 'none'}")
    (tmp_path / "key").write_text("\n")
    with pytest.raises(InvalidRequest, match="holds no secret"):
        start(tmp_path, f"--api-key-file={tmp_path / 'key'}")


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot use TLS certificate"):
        start(tmp_path, "--tls-certificate=/nonexistent/c", "--tls-key=/nonexistent/k")
    with pytest.raises(InvalidRequest, match="belong together"):
        parse_config(GatewayConfig, ["--tls-key=/nonexistent/k"])


def test_without_its_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gateway, "find_spec", lambda name: None)
    monkeypatch.setattr(gateway.logging, "configure", lambda *_: None)
    assert gateway.main(["--runtime-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "starlette and uvicorn" in said and "zipmoe[gateway]" in said


@contextmanager
def process(target: str, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs a gateway; its URL once it listens."""
    command = [sys.executable, "-m", "zipmoe.services.gateway", f"--router={target}", "--listen=127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--metrics-port=0", "--log-format=json", *flags], stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        try:
            assert running.stderr is not None
            yield running, f"http://127.0.0.1:{event(running.stderr, 'starting')['http_port']}"
        finally:
            running.kill()


def event(log: IO[str], name: str) -> dict[str, object]:
    """The next line of a log that is about an event."""
    for line in log:
        found: dict[str, object] = json.loads(line)
        if found["event"] == name:
            return found
    raise AssertionError(f"the log has ended without {name}")


def asked(url: str) -> urllib.request.Request:
    body = json.dumps({"model": "fake", "prompt": "Hi", "stream": True}).encode()
    return urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})


def test_the_first_signal_drains_and_the_second_ends_at_once() -> None:
    router = FakeRouter(hangs=True)
    with running_router(router) as target, process(target) as (running, url):
        assert running.stderr is not None
        with urllib.request.urlopen(asked(url), timeout=30) as stream:
            stream.readline()
            running.send_signal(signal.SIGTERM)
            event(running.stderr, "draining")
            router.release()
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert running.wait(30) == 0
        router.cancelled.clear()
    with running_router(router) as target, process(target) as (running, url):
        assert running.stderr is not None
        with urllib.request.urlopen(asked(url), timeout=30) as stream:
            stream.readline()
            running.send_signal(signal.SIGTERM)
            event(running.stderr, "draining")
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) == 128 + signal.SIGTERM
        assert router.cancelled.wait(30)


def test_what_runs_too_long_is_cut_off_at_the_end() -> None:
    router = FakeRouter(hangs=True)
    with running_router(router) as target, process(target, "--drain-timeout-s=0.1") as (running, url):
        with urllib.request.urlopen(asked(url), timeout=30) as stream:
            stream.readline()
            running.send_signal(signal.SIGINT)
            assert running.wait(30) == 0
        assert router.cancelled.wait(30)


def test_it_starts_without_torch() -> None:
    program = "import sys, zipmoe.services.gateway.boot; print({'torch', 'transformers'} & {*sys.modules})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout == "set()\n"
