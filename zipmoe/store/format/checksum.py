"""Computes xxh3-64, the checksum of all data in a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE_BYTES = 8 << 20


def xxh3(data: Buffer) -> int:
    """Computes the xxh3-64 of a contiguous buffer.

    Thread: releases the GIL. `update` is used because the one-shot functions of xxhash before 4.0 hold the GIL.
    """
    digest = xxhash.xxh3_64()
    digest.update(data)
    return digest.intdigest()


def xxh3_of_file(path: Path, advance: Callable[[int], None] = lambda nbytes: None) -> int:
    """Computes the xxh3-64 of a file's bytes, in pieces of 8 MiB.

    Args:
        path: the file.
        advance: called with the bytes of each piece; may raise to stop.

    Raises:
        OSError: as `open` and `read` do.
    """
    digest = xxhash.xxh3_64()
    piece = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            advance(count)
    return digest.intdigest()
