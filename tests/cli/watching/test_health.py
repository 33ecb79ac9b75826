"""`zipmoe health`: exit code 0 only if everything that was asked serves."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.cli.fake_router import FakeRouter, running_router
from tests.cli.run import zipmoe


def test_a_serving_endpoint_is_healthy() -> None:
    with running_router(FakeRouter()) as target:
        ran = zipmoe("health", target)
        assert (ran.exit_code, ran.stdout) == (0, f"{target}  SERVING\n")
        assert zipmoe("health", target, "--json").json == {
            "healthy": True,
            "endpoints": [{"name": target, "target": target, "status": "SERVING"}],
        }


def test_one_endpoint_that_does_not_answer_makes_all_unhealthy() -> None:
    with running_router(FakeRouter()) as target:
        ran = zipmoe("health", target, "unix:/nonexistent", "--json")
    assert ran.exit_code == 1
    assert ran.json["healthy"] is False
    assert [each["status"] for each in ran.json["endpoints"]] == ["SERVING", "UNREACHABLE"]


def test_without_endpoints_all_three_services_are_asked(tmp_path: Path) -> None:
    ran = zipmoe("health", "--runtime-dir", tmp_path, "--json")
    assert ran.exit_code == 1
    assert {each["name"]: each["target"] for each in ran.json["endpoints"]} == {
        "expert-store": f"unix:{tmp_path}/expert-store.sock",
        "decoder": f"unix:{tmp_path}/decoder.sock",
        "router": f"unix:{tmp_path}/router.sock",
    }


def test_a_service_is_asked_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router = FakeRouter()
    with running_router(router) as target:
        socket = Path(target.removeprefix("unix:"))
        (socket.parent / "router.sock").symlink_to(socket)
        monkeypatch.setenv("ZIPMOE_RUNTIME_DIR", str(socket.parent))
        assert zipmoe("health", "router").stdout == "router  SERVING\n"


def test_a_service_that_the_server_does_not_know_is_unhealthy(tmp_path: Path) -> None:
    with running_router(FakeRouter()) as target:
        socket = Path(target.removeprefix("unix:"))
        (socket.parent / "decoder.sock").symlink_to(socket)
        ran = zipmoe("health", "decoder", "--runtime-dir", socket.parent)
    assert (ran.exit_code, ran.stdout) == (1, "decoder  SERVICE_UNKNOWN\n")


def test_a_missing_authority_file_is_an_error() -> None:
    ran = zipmoe("health", "127.0.0.1:1", "--tls-ca", "/nonexistent/ca")
    assert ran.exit_code == 1
    assert "no such file or directory: /nonexistent/ca" in ran.stderr


@pytest.mark.parametrize(("status", "said"), [(200, "SERVING"), (503, "NOT_SERVING")])
def test_a_gateway_is_asked_over_http(status: int, said: str) -> None:
    class FakeGateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/healthz" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), FakeGateway) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        ran = zipmoe("health", url)
        server.shutdown()
    assert (ran.exit_code, ran.stdout) == (0 if status == 200 else 1, f"{url}  {said}\n")
    assert zipmoe("health", url).stdout == f"{url}  UNREACHABLE\n"
