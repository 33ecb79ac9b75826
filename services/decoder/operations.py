"""Results that a fetch session reports."""

from __future__ import annotations

from typing import NamedTuple

from zipmoe.errors import ZipMoeError


class FetchResult(NamedTuple):
    """Report on a read or recovery: the operation has ended, or the first tensor is complete.

    Attributes:
        operation_id: the client's id of the operation.
        error: cause of the failure; None if the parts or the tensors are in their slots. After an error the slots that
            the operation was to write are free and their content is undefined.
        bytes_read: bytes that came from disk; 0 for a recovery.
        work_s: seconds that the read or the recovery itself took, waiting excluded.
        first_tensor_only: the chunks or the weights of the expert's first tensor are complete, the rest is under way;
            another result follows when the operation has ended. An operation has at most one such result.
    """

    operation_id: int
    error: ZipMoeError | None
    bytes_read: int = 0
    work_s: float = 0.0
    first_tensor_only: bool = False


class FetchSessionLost(NamedTuple):
    """The session has ended without a `close` by the client; no event follows, all leases are gone."""

    error: ZipMoeError
