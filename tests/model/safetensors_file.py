"""Safetensors files written by hand, so that they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENTRIES: Mapping[str, Any] = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b.c": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    "empty": {"dtype": "U8", "shape": [4, 0], "data_offsets": [16, 16]},
}
DATA = bytes(range(16))


def content(header: Any = ENTRIES, data: bytes = DATA, header_bytes: int | None = None) -> bytes:
    """A file of a header (JSON, or bytes that are taken as they are) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if header_bytes is None else header_bytes
    return length.to_bytes(8, "little") + text + data


def write(path: Path, *args: Any, **kwargs: Any) -> Path:
    path.write_bytes(content(*args, **kwargs))
    return path
