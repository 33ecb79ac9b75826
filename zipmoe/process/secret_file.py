"""Reads the file of a token or an API key."""

from __future__ import annotations

from pathlib import Path

from zipmoe.errors import InvalidRequest, NotFound
from zipmoe.system_error import reason_of


def read_secret(path: Path) -> str:
    """Returns the secret in a file, without white space around it.

    Raises:
        NotFound: the file cannot be read.
        InvalidRequest: the file is empty, or the secret is not printable ASCII.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise NotFound(f"cannot read the secret in {path}: {reason_of(error)}") from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise InvalidRequest(
            f"{path} holds no secret: it has to be printable ASCII and not empty", next_step=f"write one into {path}"
        )
    return text
