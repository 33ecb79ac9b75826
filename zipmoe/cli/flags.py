"""Writes settings as the command line of a service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Settings = Mapping[str, str | int | float | Path | bool | Sequence[str] | None]
"""Settings by their field names in the configuration of a service."""


def flags(settings: Settings) -> list[str]:
    """Writes settings as flags: `kv_tokens=16` becomes `--kv-tokens=16`.

    True becomes the bare flag. None and False are left out. A flag with several values is repeated.
    """
    written = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            written.append(flag)
        elif value is not None and value is not False:
            # With `=`, a value that begins with a dash is still a value.
            values = value if isinstance(value, list | tuple) else (value,)
            written += [f"{flag}={each}" for each in values]
    return written
