"""What a read session reports, in the domain's own words."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import ZipMoeError


class ReadResult(NamedTuple):
    """One read has ended, or has come further.

    Attributes:
        operation_id: the client's id of the read.
        error: why it failed; None if the parts are in their slots. After an error the slots are free, their content
            undefined.
        bytes_read: bytes that came from disk.
        read_s: seconds from the first request to the disk until the last checksum was verified.
        first_tensor_only: the chunks of the expert's first tensor are valid, the others are still being read; another
            result follows when the read has ended.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    read_s: float = 0.0
    first_tensor_only: bool = False


class SessionLost(NamedTuple):
    """The session is over although the client did not close it; nothing follows, all its leases are gone."""

    error: ZipMoeError
