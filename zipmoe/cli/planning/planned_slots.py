"""How `zipmoe up` divides its memory budget over the pools of slots: as `zipmoe plan` would."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from zipmoe.cli.console import err, waiting
from zipmoe.cli.flags import Settings, flags
from zipmoe.cli.python_command import python_command
from zipmoe.errors import InternalError

AUTO: Final = "auto"
RULE: Final = "rule"

_PLAN_SETTINGS: Final = (
    "memory_budget",
    "device",
    "kv_tokens",
    "kv_cache",
    "max_prompt_tokens",
    "workers",
    "io_threads",
)


def planned_slots(store: Path, settings: Settings, *, quiet: bool) -> str | None:
    """Asks `zipmoe plan`, in a process of its own: measuring needs torch, which would stay in this one's memory.

    Args:
        store: the store's directory.
        settings: of the services; the memory budget is one of them.
        quiet: whether to keep to oneself what is being done.

    Returns:
        The slots as `--cache-slots` takes them; None, with a line on stderr, where nothing could be measured.

    Raises:
        InternalError: the plan could not be made although the settings are valid.
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
        return None
    return str(answer["cache_slots"])
