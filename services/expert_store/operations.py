"""Results that a read session reports."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import ZipMoeError


class ReadResult(NamedTuple):
    """Report on a read: the read has ended, or the first tensor's chunks are valid.

    Attributes:
        operation_id: the client's id of the read.
        error: cause of the failure; None if the parts are in their slots. After an error the slots are free and their
            content is undefined.
        bytes_read: bytes that came from disk.
        read_s: seconds from the first request to the disk until the last checksum was verified.
        first_tensor_only: the chunks of the expert's first tensor are valid, other chunks are still being read;
            another result follows when the read has ended.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    read_s: float = 0.0
    first_tensor_only: bool = False


class SessionLost(NamedTuple):
    """The session has ended without a `close` by the client; no event follows, all leases are gone."""

    error: ZipMoeError
