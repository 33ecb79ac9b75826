"""Reads a compose file as the client would: anchors resolved, variables filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "docker-compose.yml"
JETSON = DEPLOY / "docker-compose.jetson.yml"

SERVICES = {
    "expert-store": "zipmoe.services.expert_store",
    "decoder": "zipmoe.services.decoder",
    "router": "zipmoe.services.router",
}
"""The three services of ZipMoE by their names in compose, and the modules that run them."""

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<form>[-?])(?P<rest>[^}]*))?\}")


PLANNED = {
    "ZIPMOE_MEMORY_BUDGET": "4294967296",
    "ZIPMOE_STORE_MEM_LIMIT": "500000000",
    "ZIPMOE_DECODER_MEM_LIMIT": "1500000000",
    "ZIPMOE_ROUTER_MEM_LIMIT": "2294967296",
}
"""What `zipmoe plan --compose-env` has to write, with made-up values."""

VARIABLES = PLANNED | {"ZIPMOE_STORE": "/srv/store"}
"""Everything that has no default."""


def required_variables(path: Path) -> set[str]:
    """Names of the variables that a compose file has no default for."""
    return {match["name"] for match in _VARIABLE.finditer(path.read_text()) if match["form"] != "-"}


def default_variables(path: Path) -> dict[str, str]:
    """Variables that a compose file has a default for, and the default."""
    return {match["name"]: match["rest"] for match in _VARIABLE.finditer(path.read_text()) if match["form"] == "-"}


def load(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Reads a compose file with `variables` set and no others. Filled-in values stay text, as the client has them."""

    def value(match: re.Match[str]) -> str:
        if match["name"] in variables:
            return variables[match["name"]]
        assert match["form"] == "-", f"{match['name']} has neither a value nor a default"
        return match["rest"]

    def filled_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled_in(item) for key, item in node.items()}
        if isinstance(node, list):
            return [filled_in(item) for item in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    document: dict[str, Any] = filled_in(yaml.safe_load(path.read_text()))
    return document
