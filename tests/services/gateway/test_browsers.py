"""Web pages: those of named origins may use the gateway, those of others may not, by whatever host they call it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.services.gateway.running import MODEL, front
from zipmoe.errors import InvalidRequest
from zipmoe.process.config import parse_config
from zipmoe.services.gateway.config import GatewayConfig

PLAIN = {"model": MODEL, "prompt": "Hi"}
PAGE = "https://chat.example.com"
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


async def test_a_page_of_a_named_origin_gets_permission_without_a_key_and_answers_with_one() -> None:
    async with front(api_key="s3cret", allow_origin=[PAGE]) as gateway, gateway.http() as http:
        permission = await http.options("/v1/completions", headers=ASKS)
        refused = await http.post("/v1/completions", json=PLAIN, headers={"origin": PAGE})
        key = {"authorization": "Bearer s3cret", "origin": PAGE}
        whole = await http.post("/v1/completions", json=PLAIN, headers=key)
        streamed = await http.post("/v1/completions", json={**PLAIN, "stream": True}, headers=key)
    assert (permission.status_code, permission.content) == (204, b"")
    assert permission.headers["access-control-allow-origin"] == PAGE
    assert "POST" in permission.headers["access-control-allow-methods"]
    assert permission.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert "content-length" not in permission.headers
    assert (refused.status_code, whole.status_code, streamed.status_code) == (401, 200, 200)
    for answer in (permission, refused, whole, streamed):
        assert answer.headers["access-control-allow-origin"] == PAGE, "the page can also read why it was refused"
        assert "origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
    assert "x-request-id" in whole.headers["access-control-expose-headers"]
    assert len(gateway.router.requests) == 2


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", f"{PAGE}:8443", "x"])
@pytest.mark.parametrize("settings", [{}, {"allow_origin": [PAGE]}, {"api_key": "s3cret"}])
async def test_a_foreign_page_is_refused_with_and_without_preflight(origin: str, settings: dict[str, Any]) -> None:
    key = {"authorization": "Bearer s3cret", "origin": origin}
    async with front(**settings) as gateway, gateway.http() as http:
        answers = [
            await http.options("/v1/completions", headers={**ASKS, "origin": origin}),
            await http.post("/v1/completions", json=PLAIN, headers=key),
            await http.get("/v1/models", headers=key),
        ]
    for answer in answers:
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in answer.headers
    assert not gateway.router.requests


async def test_two_origins_are_none() -> None:
    async with front(allow_origin=[PAGE]) as gateway, gateway.http() as http:
        twice = [("origin", PAGE), ("origin", "https://evil.example")]
        assert (await http.get("/v1/models", headers=twice)).status_code == 403


async def test_the_gateways_own_pages_and_programs_need_no_permission() -> None:
    async with front() as gateway, gateway.http() as http:
        own = await http.get("/v1/models", headers={"origin": gateway.url})
        program = await http.get("/v1/models")
    assert (own.status_code, program.status_code) == (200, 200)
    assert "vary" not in program.headers


async def test_any_origin_has_to_be_named_too() -> None:
    async with front(allow_origin=["*"]) as gateway, gateway.http() as http:
        answer = await http.get("/v1/models", headers={"origin": "null"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


async def test_odd_names_of_headers_are_not_repeated() -> None:
    async with front(allow_origin=[PAGE]) as gateway, gateway.http() as http:
        odd = await http.options("/v1/models", headers={**ASKS, "access-control-request-headers": "a: b"})
    assert odd.headers["access-control-allow-headers"] == "authorization, content-type, x-api-key"


LOCAL = ["localhost", "LOCALHOST:1", "localhost.", "ui.localhost:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"]
FOREIGN = ["evil.example", "evil.example:8080", "localhost.evil.example", "192.168.1.5", "0.0.0.0:8080", "[fd00::1]"]


@pytest.mark.parametrize("host", LOCAL)
async def test_this_machine_has_several_names(host: str) -> None:
    async with front() as gateway, gateway.http() as http:
        assert (await http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, "", "::1"])
async def test_a_name_that_a_foreign_name_server_may_give_is_refused(host: str) -> None:
    async with front() as gateway, gateway.http() as http:
        named = {"host": host}
        rebound = {**named, "origin": f"http://{host}"}
        answers = [
            await http.get("/v1/models", headers=named),
            await http.post("/v1/completions", json=PLAIN, headers=rebound),
            await http.options("/v1/completions", headers={**ASKS, **rebound}),
        ]
        health = [await http.get(path, headers=named) for path in ("/health", "/healthz")]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    assert [answer.status_code for answer in health] == [200, 200], "probes come by any name"
    assert not gateway.router.requests


@pytest.mark.parametrize(
    "settings",
    [
        {"allow_host": ["evil.example", "localhost.evil.example", "192.168.1.5", "0.0.0.0", "[fd00:0::1]"]},
        {"allow_host": ["*"]},
        {"api_key": "s3cret"},
    ],
)
@pytest.mark.parametrize("host", FOREIGN)
async def test_a_host_that_is_named_or_a_key_makes_it_good(host: str, settings: dict[str, Any]) -> None:
    async with front(**settings) as gateway, gateway.http() as http:
        headers = {"host": host, "authorization": "Bearer s3cret"}
        assert (await http.get("/v1/models", headers=headers)).status_code == 200


def test_a_host_that_the_gateway_listens_on_is_named_by_that() -> None:
    from starlette.datastructures import Headers

    from zipmoe.services.gateway.browsers import BrowserRules
    from zipmoe.services.gateway.http_problem import HttpProblem

    BrowserRules([], [], listen="192.168.1.5:80", has_api_key=False).check(Headers({"host": "192.168.1.5"}), "/v1")
    with pytest.raises(HttpProblem, match="is not allowed"):
        BrowserRules([], [], listen="0.0.0.0:80", has_api_key=False).check(Headers({"host": "0.0.0.0"}), "/v1")
    with pytest.raises(HttpProblem, match="is not allowed"):
        BrowserRules([], [], listen="127.0.0.1:80", has_api_key=False).check(Headers(), "/v1")


def test_settings_name_origins_and_hosts_and_by_default_none() -> None:
    assert (parse_config(GatewayConfig, []).allow_origin, parse_config(GatewayConfig, []).allow_host) == ([], [])
    flags = ["--allow-origin=https://A", "--allow-origin=http://b:80", "--allow-host=C", "--allow-host=[::2]"]
    config = parse_config(GatewayConfig, flags)
    assert (config.allow_origin, config.allow_host) == (["https://a", "http://b"], ["c", "::2"])
    with pytest.raises(InvalidRequest, match="--allow-origin: 'localhost:3000' is no origin"):
        parse_config(GatewayConfig, ["--allow-origin=localhost:3000"])
    with pytest.raises(InvalidRequest, match="--allow-host: 'c:80' is no host"):
        parse_config(GatewayConfig, ["--allow-host=c:80"])
