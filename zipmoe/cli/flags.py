"""Command lines of services, from settings by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Settings = Mapping[str, str | int | float | Path | bool | None]
"""Values by the names that they have in a service's configuration."""


def flags(settings: Settings) -> list[str]:
    """Writes settings as flags: `kv_tokens=16` is `--kv-tokens=16`, True the bare flag; None and False are left out."""
    written = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            written.append(flag)
        elif value is not None and value is not False:
            # With `=`, a value that begins with a dash is still a value.
            written.append(f"{flag}={value}")
    return written
