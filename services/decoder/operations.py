"""What a fetch session reports, in the domain's own words."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import ZipMoeError


class FetchResult(NamedTuple):
    """One read or one recovery has ended.

    Attributes:
        operation_id: the client's id of the operation.
        error: why it failed; None if the slot holds what was asked for. After an error the slot that the operation was
            to write is free, its content undefined.
        bytes_read: bytes that came from disk; 0 for a recovery.
        work_s: seconds the read or the recovery itself took, waiting excluded.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    work_s: float = 0.0


class FetchSessionLost(NamedTuple):
    """The session is over although the client did not close it; nothing follows, all its leases are gone."""

    error: ZipMoeError
