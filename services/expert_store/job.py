"""One read of one expert: which of its requests are left, and which of its chunks are complete."""

from __future__ import annotations

from services.expert_store.plan import ReadPlan
from zipmoe.errors import ZipMoeError
from zipmoe.residency.base import Read
from zipmoe.store.layout import ChunkSpan
from zipmoe.store.reader import ReadRequest


class ReadJob:
    """One read of one expert on its way through the channel.

    Attributes:
        read: what is read, into which slot.
        holder: the session that wants it.
        error: why it failed; None so far, and in the end if it did not. The first error counts.
        bytes_read: bytes that arrived from disk.
        started_s: when its first request was issued, in seconds of the monotonic clock; 0 before.
        ended_s: when its last chunk was checked; 0 before.

    Thread: guarded by the channel's lock until it has ended, then owned by whoever received it.
    """

    __slots__ = (
        "_in_flight",
        "_missing",
        "_next",
        "_plan",
        "_slot",
        "bytes_read",
        "ended_s",
        "error",
        "holder",
        "read",
        "started_s",
    )

    def __init__(self, read: Read, holder: str, plan: ReadPlan, slot: memoryview) -> None:
        self.read = read
        self.holder = holder
        self.error: ZipMoeError | None = None
        self.bytes_read = 0
        self.started_s = 0.0
        self.ended_s = 0.0
        self._plan = plan
        self._slot = slot
        self._missing = list(plan.sizes)
        self._next = 0
        self._in_flight = 0

    @property
    def slot(self) -> memoryview:
        """The slot's bytes, writable."""
        return self._slot

    @property
    def request_count(self) -> int:
        """Requests of the whole read."""
        return len(self._plan.requests)

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
        self.bytes_read += request.nbytes
        return self._plan.landed(request, self._missing)

    def check(self, chunk: ChunkSpan) -> None:
        """Checks the bytes of a chunk that is complete.

        Raises:
            CorruptData: they are not what was packed.
        """
        self._plan.check(chunk, self._slot)

    def settle(self, error: ZipMoeError | None) -> None:
        """Notes a request, its checks included, as over."""
        self._in_flight -= 1
        if error is not None:
            self.stop(error)

    def let_go(self) -> None:
        """Drops the view of the slot, so that the arena can be closed."""
        if self.error is not None:
            # The frames of a traceback hold slices of the slot.
            self.error.__traceback__ = self.error.__cause__ = self.error.__context__ = None
        self._slot.release()
