"""One read of one expert: which of its requests are left, and which of its chunks are complete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from zipmoe.errors import ZipMoeError
from zipmoe.residency.pools import Read
from zipmoe.services.expert_store.plan import ReadPlan
from zipmoe.store.format.layout import ChunkSpan
from zipmoe.store.read.reader import ReadRequest
from zipmoe.types import Part


class ReadJob:
    """One read of one expert on its way through the channel.

    Attributes:
        read: what is read, into which slots.
        holder: the session that wants it.
        begin_by_s: on the monotonic clock, when nobody waits for it any more; it is not begun from then on.
        e_slot: bytes of the slot for E-chunks, writable; empty if they are not read.
        sm_slot: likewise for SM-chunks.
        error: why it failed; None so far, and in the end if it did not. The first error counts.
        bytes_read: bytes that arrived from disk, of each part.
        started_s: when its first request was issued, in seconds of the monotonic clock; 0 before.
        ended_s: when its last chunk was checked; 0 before.

    Thread: guarded by the channel's lock until it has ended, then owned by whoever received it.
    """

    __slots__ = (
        "_first_left",
        "_in_flight",
        "_missing",
        "_next",
        "_plan",
        "_unchecked",
        "begin_by_s",
        "bytes_read",
        "e_slot",
        "ended_s",
        "error",
        "holder",
        "read",
        "sm_slot",
        "started_s",
    )

    def __init__(
        self,
        read: Read,
        holder: str,
        plan: ReadPlan,
        e_slot: memoryview,
        sm_slot: memoryview,
        *,
        begin_by_s: float = math.inf,
    ) -> None:
        self.read = read
        self.holder = holder
        self.begin_by_s = begin_by_s
        self.e_slot = e_slot
        self.sm_slot = sm_slot
        self.error: ZipMoeError | None = None
        self.bytes_read = {Part.E: 0, Part.SM: 0}
        self.started_s = 0.0
        self.ended_s = 0.0
        self._plan = plan
        self._missing = list(plan.sizes)
        self._first_left = len(plan.first_tensor)
        self._unchecked = len(plan.sizes)
        self._next = 0
        self._in_flight = 0

    @property
    def request_count(self) -> int:
        """Requests of the whole read."""
        return len(self._plan.requests)

    @property
    def begun(self) -> bool:
        """Whether a request has been issued."""
        return self._next > 0

    @property
    def issued(self) -> bool:
        """Whether no request is left to issue."""
        return self._next == len(self._plan.requests)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to issue and nothing is in flight."""
        return self.issued and self._in_flight == 0

    def take(self) -> ReadRequest:
        """Issues the next request."""
        request = self._plan.requests[self._next]
        self._next += 1
        self._in_flight += 1
        return request

    def stop(self, error: ZipMoeError) -> None:
        """Gives up: what has not been issued never will be."""
        self.error = self.error or error
        self._next = len(self._plan.requests)

    def landed(self, request: ReadRequest) -> list[ChunkSpan]:
        """Notes the bytes of a request as arrived; returns the chunks that are complete by them."""
        for part, place in ((Part.E, request.e_place), (Part.SM, request.sm_place)):
            self.bytes_read[part] += place.stop - place.start
        return self._plan.landed(request, self._missing)

    def check(self, chunk: ChunkSpan) -> None:
        """Checks the bytes of a chunk that is complete.

        Raises:
            CorruptData: they are not what was packed.
        """
        self._plan.check(chunk, self.e_slot, self.sm_slot)

    def checked(self, chunks: Sequence[ChunkSpan]) -> bool:
        """Notes chunks as valid; returns whether those of the first tensor, and not yet the whole read, are by that."""
        count = sum(chunk.offset in self._plan.first_tensor for chunk in chunks)
        self._first_left -= count
        self._unchecked -= len(chunks)
        return count > 0 and self._first_left == 0 and self._unchecked > 0 and self.error is None

    def settle(self, error: ZipMoeError | None) -> None:
        """Notes a request, its checks included, as over."""
        self._in_flight -= 1
        if error is not None:
            self.stop(error)

    def let_go(self) -> None:
        """Drops the views of the slots, so that the arenas can be closed."""
        if self.error is not None:
            # The frames of a traceback hold slices of the slots.
            self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None
        self.e_slot.release()
        self.sm_slot.release()


class ReadEvent(NamedTuple):
    """A read has come further: it has `ended`, or the chunks of the expert's first tensor are valid, not yet the rest.

    Before the job has ended it still belongs to the channel: nothing but `read` and `holder` is to be looked at.
    """

    job: ReadJob
    ended: bool
