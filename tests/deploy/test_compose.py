from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.compose import (
    BASE,
    DEPLOY,
    JETSON,
    PLANNED,
    SERVICES,
    VARIABLES,
    default_variables,
    load,
    required_variables,
)


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = load(BASE, VARIABLES)["services"]
    return found


def test_both_files_follow_the_compose_schema() -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*check, BASE, JETSON], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("files", [[BASE], [BASE, JETSON]], ids=["cpu", "jetson"])
def test_the_compose_client_resolves_the_files(files: list[Path]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no docker compose client here")
    named = [part for file in files for part in ("--file", str(file))]
    done = subprocess.run(
        [docker, "compose", *named, "config", "--quiet"], env=VARIABLES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_the_plan_and_the_store_have_to_be_given() -> None:
    assert required_variables(BASE) == set(VARIABLES)
    assert required_variables(JETSON) <= set(VARIABLES)


def test_ports_are_published_on_the_loopback_address_only(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "ports" not in services["expert-store"]
    assert "ports" not in services["decoder"]


@pytest.mark.parametrize("name", ["expert-store", "decoder", "router", "gateway", "prometheus", "grafana"])
def test_a_container_has_no_more_rights_than_it_needs(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "network_mode"} & set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_the_common_user_in_the_common_folder_with_a_read_only_store(
    services: dict[str, Any], name: str
) -> None:
    service = services[name]
    assert service["user"] == "10001:10001"
    assert service["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert service["init"] is True
    assert service["volumes"] == [
        {"type": "bind", "source": "/srv/store", "target": "/store", "read_only": True},
        {"type": "volume", "source": "runtime", "target": "/run/zipmoe"},
    ]


def test_the_shared_folder_belongs_to_the_common_user() -> None:
    mine = load(BASE, VARIABLES | {"ZIPMOE_UID": "1000", "ZIPMOE_GID": "1001"})
    assert mine["services"]["decoder"]["user"] == "1000:1001"
    assert mine["volumes"]["runtime"]["driver_opts"]["o"] == "size=1m,mode=0700,uid=1000,gid=1001"


def test_the_folders_of_image_and_compose_are_the_same() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert "ZIPMOE_RUNTIME_DIR=/run/zipmoe" in dockerfile
    assert "USER 10001:10001" in dockerfile


@pytest.mark.parametrize("name", SERVICES)
def test_memory_limits_are_the_shares_of_the_split_without_swap(services: dict[str, Any], name: str) -> None:
    share = {"expert-store": "STORE", "decoder": "DECODER", "router": "ROUTER"}[name]
    limit = PLANNED[f"ZIPMOE_{share}_MEM_LIMIT"]
    assert services[name]["mem_limit"] == services[name]["memswap_limit"] == limit


def test_services_start_in_order_once_the_one_before_is_healthy(services: dict[str, Any]) -> None:
    assert "depends_on" not in services["expert-store"]
    assert services["decoder"]["depends_on"] == {"expert-store": {"condition": "service_healthy"}}
    assert services["router"]["depends_on"] == {"decoder": {"condition": "service_healthy"}}
    for name in SERVICES:
        assert services[name]["healthcheck"]["test"][:3] == ["CMD", "zipmoe", "health"]


def test_the_gateway_is_started_on_request_only_and_sees_nothing_but_the_sockets(services: dict[str, Any]) -> None:
    gateway = services["gateway"]
    assert [name for name, service in services.items() if "profiles" in service] == ["gateway"]
    assert gateway["profiles"] == ["gateway"]
    assert gateway["user"] == services["router"]["user"]
    assert [mount["target"] for mount in gateway["volumes"]] == ["/run/zipmoe"]
    assert gateway["depends_on"] == {"router": {"condition": "service_healthy"}}
    assert gateway["healthcheck"]["test"] == ["CMD", "zipmoe", "health", "http://127.0.0.1:8080"]


def test_what_is_mounted_from_here_exists(services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in service["volumes"]:
            if mount["source"].startswith("."):
                assert (DEPLOY / mount["source"]).is_dir()
                assert mount["read_only"] is True


def test_the_store_and_the_decoder_have_no_way_out(services: dict[str, Any]) -> None:
    networks = load(BASE, VARIABLES)["networks"]
    for name in ("expert-store", "decoder"):
        assert all(networks[network]["internal"] for network in services[name]["networks"])


def test_the_jetson_file_keeps_the_base_images_torch_and_only_gives_the_router_the_gpu() -> None:
    jetson = yaml.safe_load(JETSON.read_text())["services"]
    assert default_variables(JETSON)["ZIPMOE_BASE_IMAGE"].endswith("-igpu")
    for name in SERVICES:
        assert set(jetson[name]["build"]["args"]) == {"BASE_IMAGE"}
        assert ("runtime" in jetson[name]) is (name == "router")
    assert jetson["router"]["runtime"] == "nvidia"
