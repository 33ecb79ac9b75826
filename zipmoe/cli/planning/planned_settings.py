"""Divides the memory budget of `zipmoe up` over the pools of slots, by a run of `zipmoe plan`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zipmoe.cli.console import err, waiting
from zipmoe.cli.flags import Settings, flags
from zipmoe.errors import InternalError
from zipmoe.process.python_command import python_command

AUTO: Final = "auto"
RULE: Final = "rule"

_PLAN_SETTINGS: Final = (
    "memory_budget",
    "device",
    "kv_tokens",
    "kv_cache",
    "dense",
    "tensor_form",
    "max_prompt_tokens",
    "workers",
    "io_threads",
)


def planned_settings(store: Path, settings: Settings, *, quiet: bool) -> Settings:
    """Runs `zipmoe plan` in a child process and returns the planned slots, KV cache and form of dense weights.

    A child process, because a measurement needs torch, which would stay in the memory of this process.

    Args:
        store: the store's directory.
        settings: settings of the services, the memory budget included.
        quiet: whether to show no status message.

    Returns:
        `cache_slots` in the form of `--cache-slots`, `kv_tokens`, `dense` and `dense_bytes`. Nothing, with the reason
        on stderr, if the plan has no forecast.

    Raises:
        InternalError: `zipmoe plan` failed although the settings are valid.
    """
    wanted = {name: settings.get(name) for name in _PLAN_SETTINGS}
    command = python_command("-m", "zipmoe.cli", "plan", str(store), *flags(wanted), "--json")
    with waiting("planning what stays in memory; measures this machine the first time", quiet=quiet):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InternalError(f"`zipmoe plan` ended with code {done.returncode}: {done.stderr.strip()}")
    answer: Mapping[str, Any] = json.loads(done.stdout)
    if answer["no_forecast_because"]:
        err().print(f"memory is divided by a rule: {answer['no_forecast_because']}", markup=False)
        return {}
    return {
        "cache_slots": str(answer["cache_slots"]),
        "kv_tokens": int(answer["kv_tokens"]),
        "dense": str(answer["dense"]),
        "dense_bytes": int(answer["dense_bytes"]),
        "tensor_form": str(answer["tensor_form"]),
    }
