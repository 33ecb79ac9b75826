"""What a fetch session reports, in the domain's own words."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import ZipMoeError


class FetchResult(NamedTuple):
    """One read or one recovery has ended, or has come further.

    Attributes:
        operation_id: the client's id of the operation.
        error: why it failed; None if the slots hold what was asked for. After an error the slots that the operation was
            to write are free, their content undefined.
        bytes_read: bytes that came from disk; 0 for a recovery.
        work_s: seconds the read or the recovery itself took, waiting excluded.
        first_tensor_only: the expert's first tensor is complete, its chunks or its weights, the rest is under way;
            another result follows when the operation has ended. At most one such result an operation.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    work_s: float = 0.0
    first_tensor_only: bool = False


class FetchSessionLost(NamedTuple):
    """The session is over although the client did not close it; nothing follows, all its leases are gone."""

    error: ZipMoeError
