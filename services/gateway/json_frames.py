"""JSON of answers, and frames of server-sent events."""

from __future__ import annotations

import json
from typing import Any, Final

DONE: Final = b"data: [DONE]\n\n"
"""The frame that ends a stream of OpenAI's chats and completions."""


def to_json(value: Any) -> bytes:
    """Encodes a value as JSON without spaces, in UTF-8. Half a surrogate pair, which clients may send, becomes `?`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode(errors="replace")


def frame(value: Any, event: str = "") -> bytes:
    """Encodes a value as a server-sent event, with the event's name if it has one."""
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + to_json(value) + b"\n\n"
