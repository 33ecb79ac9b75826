"""The flags and variables of the compose files, read by the services' own configuration classes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.compose import BASE, DEPLOY, JETSON, VARIABLES, default_variables, load
from tests.deploy.trio import run_verb
from zipmoe.planning.memory_split import BudgetRequest, split_budget
from zipmoe.process.config import ServiceConfig, parse_config
from zipmoe.services.decoder.config import DecoderConfig
from zipmoe.services.expert_store.config import StoreConfig
from zipmoe.services.gateway.config import GatewayConfig
from zipmoe.services.router.config import RouterConfig
from zipmoe.store.format.manifest import read_manifest

CONFIGS: dict[str, type[ServiceConfig]] = {
    "expert-store": StoreConfig,
    "decoder": DecoderConfig,
    "router": RouterConfig,
}
ALL_CONFIGS: dict[str, type[ServiceConfig]] = {**CONFIGS, "gateway": GatewayConfig}
SPLIT_FIELDS = (
    *(
        "memory_budget",
        "cache_slots",
        "kv_tokens",
        "kv_cache",
        "dense",
        "dense_bytes",
        "tensor_form",
        "max_prompt_tokens",
        "workers",
    ),
    "device",
)
IMAGE_ENVIRONMENT = dict(
    re.findall(r"^(?:ENV)?\s+(ZIPMOE_\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
)


@pytest.fixture(autouse=True)
def only_what_a_test_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("ZIPMOE_"):
            monkeypatch.delenv(name)


def settings_of(service: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configuration that a container of `service` would read."""
    command = compose["services"][service]["command"]
    assert command[0] == service
    environment = IMAGE_ENVIRONMENT | compose["services"][service].get("environment", {})
    known = {"ZIPMOE_" + field.upper() for field in ALL_CONFIGS[service].model_fields}
    assert {name for name in environment if name.startswith("ZIPMOE_")} <= known
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return parse_config(ALL_CONFIGS[service], command[1:])


@pytest.fixture
def base() -> dict[str, Any]:
    return load(BASE, VARIABLES)


@pytest.mark.parametrize("service", CONFIGS)
def test_a_service_accepts_its_settings(service: str, base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(service, base, monkeypatch)
    assert str(settings.store) == "/store"
    assert str(settings.runtime_dir) == "/run/zipmoe"
    assert settings.metrics_address == "0.0.0.0"
    assert settings.memory_budget == 4 << 30


def test_the_gateway_accepts_its_settings_and_drains_after_the_router(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("gateway", base, monkeypatch)
    assert (settings.listen, settings.insecure_listen, settings.metrics_port) == ("0.0.0.0:8080", True, 9104)
    assert str(settings.runtime_dir) == "/run/zipmoe"
    assert settings.drain_timeout_s < float(base["services"]["gateway"]["stop_grace_period"].removesuffix("s"))


@pytest.mark.parametrize("given", [{}, {"ZIPMOE_KV_CACHE": "latent", "ZIPMOE_WORKERS": "3"}], ids=["defaults", "given"])
def test_the_three_services_split_the_budget_alike(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    compose = load(BASE, VARIABLES | given)
    splits = []
    for service in CONFIGS:
        with monkeypatch.context() as patch:
            settings = settings_of(service, compose, patch)
            splits.append({field: getattr(settings, field) for field in SPLIT_FIELDS})
    assert splits[0] == splits[1] == splits[2]


def test_the_defaults_are_those_of_the_plan() -> None:
    request = BudgetRequest(1)
    defaults = default_variables(BASE)
    assert defaults["ZIPMOE_KV_TOKENS"] == str(request.kv_tokens)
    assert defaults["ZIPMOE_KV_CACHE"] == request.kv_cache
    assert defaults["ZIPMOE_MAX_PROMPT_TOKENS"] == str(request.prompt_tokens)
    assert defaults["ZIPMOE_WORKERS"] == str(request.worker_count)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--kv-tokens=8192", "--workers=3"]], ids=["defaults", "given"])
def test_the_limits_that_plan_writes_are_the_shares_that_services_compute(
    small_store: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run_verb("plan", small_store, "--memory-budget=2GiB", *flags, "--compose-env")
    planned = dict(line.split("=", 1) for line in said.splitlines())
    compose = load(BASE, {"ZIPMOE_STORE": "/srv/store"} | planned)
    manifest = read_manifest(small_store)
    model = json.loads((small_store / "config.json").read_text())
    for service, share in zip(CONFIGS, ("store_bytes", "decoder_bytes", "router_bytes"), strict=True):
        with monkeypatch.context() as patch:
            found = settings_of(service, compose, patch)
        request = found.budget_request(int(found.memory_budget), None)
        limit = int(compose["services"][service]["mem_limit"])
        assert limit == getattr(split_budget(manifest, model, request), share)


def test_on_a_jetson_all_three_plan_for_cuda(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    override = load(JETSON, VARIABLES)["services"]
    for service in CONFIGS:
        assert "command" not in override[service]
        base["services"][service]["environment"] = {
            **base["services"][service]["environment"],
            **override[service]["environment"],
        }
        with monkeypatch.context() as patch:
            assert settings_of(service, base, patch).device == "cuda"


def test_the_router_drains_before_compose_kills_it(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of("router", base, monkeypatch)
    assert settings.drain_timeout_s < float(base["services"]["router"]["stop_grace_period"].removesuffix("s"))
    assert settings.listen == "0.0.0.0:50051"
    assert settings.insecure_listen


def test_the_readmes_way_with_tls_is_accepted(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"^    services:\n(?:    .*\n)+", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    assert block is not None
    override = yaml.safe_load(block[0].replace("!override ", ""))
    base["services"]["router"]["command"] = override["services"]["router"]["command"]
    settings = settings_of("router", base, monkeypatch)
    assert not settings.insecure_listen
    mounted = {f"/run/secrets/{name}" for name in override["secrets"]}
    assert {str(settings.tls_certificate), str(settings.tls_key), str(settings.token_file)} == mounted
