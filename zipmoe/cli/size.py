"""Parses and formats sizes in bytes."""

from __future__ import annotations

import re

from zipmoe.errors import InvalidRequest

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000 ** (power + 1) for power, prefix in enumerate("kmgt")},
    **{f"{prefix}ib": 1024 ** (power + 1) for power, prefix in enumerate("kmgt")},
    **{prefix: 1024 ** (power + 1) for power, prefix in enumerate("kmgt")},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII)


def parse_size(text: str) -> int:
    """Parses a size such as `4GiB`, `1.5G`, `800MB` or `4096`.

    Returns:
        Bytes. `GiB` and `G` are 2**30, `GB` is 10**9.

    Raises:
        InvalidRequest: the text is no size, or the size is less than one byte.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    unit = _UNITS.get(match[2]) if match else None
    nbytes = int(float(match[1]) * unit) if match and unit else 0
    if nbytes < 1:
        raise InvalidRequest(f"{text!r} is not a size", next_step="write a size as 4GiB, 1.5GiB, 800MB or 4096")
    return nbytes


def format_size(nbytes: float) -> str:
    """Formats a size with a binary unit: `4.00 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.2f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.2f} TiB"
