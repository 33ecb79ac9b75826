"""An arena: one sealed piece of shared memory, cut into slots of equal size.

The owner of an arena writes; all other processes map the arena read-only. An arena has no name in the file system. So
no other process can open it by name, and kill -9 leaves no file behind. The pages live until the last mapping is gone,
so a reader keeps its mapping when the owner dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import weakref
from functools import cached_property

from zipmoe.arena import memory_pages
from zipmoe.arena.headroom import memory_headroom
from zipmoe.arena.huge_pages import huge_page_bytes, huge_page_size, prefer_huge_pages
from zipmoe.arena.mapping import AlignedMapping
from zipmoe.errors import InvalidRequest, NotFound, ResourceExhausted, SlotLeased
from zipmoe.system_error import reason_of

SLOT_ALIGNMENT_BYTES = 4096  # O_DIRECT and page mappings need it

_MAX_SLOT_COUNT = (1 << 32) - 1  # `slot` is a uint32 in the protocol
# Linux 5.1: existing mappings stay writable, new mappings cannot be. Python has the name from 3.13 on.
_F_SEAL_FUTURE_WRITE = 0x0010
_SIZE_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class _SlotMapping:
    """A mapping cut into slots. Views of slots keep the mapping open, so it cannot be closed under a reader."""

    def __init__(self, mapping: AlignedMapping, slot_bytes: int, slot_count: int, name: str) -> None:
        self._mapping = mapping
        self._name = name
        self.slot_bytes = slot_bytes
        self.slot_count = slot_count

    @property
    def nbytes(self) -> int:
        """Bytes of all slots together."""
        return self.slot_bytes * self.slot_count

    def slot(self, index: int) -> memoryview:
        """Returns a view of one slot: uint8, shape (slot_bytes,), writable only in the owner.

        An array or tensor over the view (numpy, `torch.frombuffer`) keeps the view, and the view keeps the mapping.

        Raises:
            NotFound: the arena has no slot `index`.
            InvalidRequest: the arena is closed.
        """
        if not 0 <= index < self.slot_count:
            raise NotFound(f"slot {index} of {self._name}, which has {self.slot_count} slots")
        self._require_open()
        return self._mapping.view(index * self.slot_bytes, self.slot_bytes)

    @property
    def address(self) -> int:
        """Address of the first byte, for `cudaHostRegister` and similar calls. Unregister it before `close`.

        Raises:
            InvalidRequest: the arena is closed.
        """
        self._require_open()
        return self._mapping.address

    @cached_property
    def huge_page_bytes(self) -> int:
        """Bytes of the arena that this process reached through huge pages when the property was first read.

        Raises:
            InvalidRequest: the arena is closed.
        """
        self._require_open()
        return huge_page_bytes([self._mapping.place])

    def close(self) -> None:
        """Unmaps the arena; a second call does nothing.

        Raises:
            SlotLeased: views of slots still exist. The arena stays open.
        """
        try:
            self._mapping.close()
        except BufferError:
            raise SlotLeased(
                f"cannot unmap {self._name} of {self.nbytes} bytes: views of its slots are still in use",
                next_step="drop every memoryview, array and tensor over the arena first",
            ) from None

    def _require_open(self) -> None:
        if self._mapping.closed:
            raise InvalidRequest(f"{self._name} is closed")


class Arena(_SlotMapping):
    """The owner's side of an arena: writable, allocated, pre-faulted, and locked where the system allows locking."""

    def __init__(self, owner_id: str, fd: int, mapping: AlignedMapping, slot_bytes: int, slot_count: int) -> None:
        """Use `create`."""
        super().__init__(mapping, slot_bytes, slot_count, f"the arena of {owner_id}")
        self.owner_id = owner_id
        self.epoch = secrets.randbits(62) + 1  # 63 bits and never 0, the value of an unset field
        self.lock_error: str | None = "locking was not asked for"
        self.huge_page_error: str | None = None
        """Why some of the memory that fills whole huge pages is in small pages; None if none is."""

        self._fd = fd
        self._close_fd = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, owner_id: str, slot_bytes: int, slot_count: int, *, lock: bool) -> Arena:
        """Allocates an arena and touches every page, so that no later access can fail for lack of memory.

        Args:
            owner_id: name of the owning process, as in slot references.
            slot_bytes: bytes of one slot, a positive multiple of 4096.
            slot_count: number of slots, at least 1.
            lock: whether to try mlock; the result is in `locked` and `lock_error`.

        Raises:
            InvalidRequest: the geometry is malformed.
            BudgetInfeasible: the arena is larger than the machine's memory or the control group's limit.
            ResourceExhausted: the arena is larger than the memory that is free now, or the kernel refused.

        Cost: one pass over the memory by the kernel. The GIL is released.
        """
        if slot_bytes <= 0 or slot_bytes % SLOT_ALIGNMENT_BYTES:
            raise InvalidRequest(f"slots of {slot_bytes} bytes, want a positive multiple of {SLOT_ALIGNMENT_BYTES}")
        if not 0 < slot_count <= _MAX_SLOT_COUNT:
            raise InvalidRequest(f"an arena of {slot_count} slots, want 1 to {_MAX_SLOT_COUNT}")
        nbytes = slot_bytes * slot_count
        purpose = f"the arena of {owner_id} ({slot_count} slots of {slot_bytes} bytes)"
        memory_headroom().require(nbytes, purpose)
        try:
            fd, mapping, refusal = _allocate(owner_id, nbytes)
        except OSError as error:
            raise ResourceExhausted(
                f"{purpose} needs {nbytes} bytes, the kernel refused: {reason_of(error)}"
            ) from error
        arena = cls(owner_id, fd, mapping, slot_bytes, slot_count)
        if lock:
            arena.lock_error = memory_pages.lock(arena.address, nbytes)
        if arena.huge_page_bytes < nbytes // huge_page_size() * huge_page_size():
            arena.huge_page_error = refusal or "the kernel gave small pages"
        return arena

    @property
    def locked(self) -> bool:
        """Whether the pages can never be swapped out."""
        return self.lock_error is None

    def read_only_fd(self) -> int:
        """Opens a new read-only descriptor of the arena. The caller closes it.

        A duplicated descriptor would share the owner's write access. Only a reopened file is read-only for good.

        Raises:
            InvalidRequest: the arena is closed.
        """
        self._require_open()
        return os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Unmaps the arena and gives up ownership; readers keep their mappings.

        Raises:
            SlotLeased: views of slots still exist. The arena stays open.
        """
        if not self._mapping.closed:
            super().close()
            self._close_fd()


class ArenaView(_SlotMapping):
    """A reader's side of an arena: a read-only mapping."""

    @classmethod
    def open(cls, fd: int, slot_bytes: int, slot_count: int) -> ArenaView:
        """Maps an arena that another process owns.

        Args:
            fd: a read-only descriptor of the arena; the caller may close it afterwards.
            slot_bytes: bytes of one slot.
            slot_count: number of slots.

        Raises:
            InvalidRequest: the descriptor is writable, is not sealed against a change of size (an access behind a later
                truncation would kill this process), or has another size than the geometry says.
        """
        nbytes = slot_bytes * slot_count
        actual_bytes = os.fstat(fd).st_size
        if nbytes <= 0 or actual_bytes != nbytes:
            raise InvalidRequest(f"arena of {actual_bytes} bytes for {slot_count} slots of {slot_bytes} bytes")
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            raise InvalidRequest("arena descriptor is writable, want a read-only one")
        if _seals(fd) & _SIZE_SEALS != _SIZE_SEALS:
            raise InvalidRequest("arena descriptor is not sealed against a change of size")
        mapping = AlignedMapping(nbytes, fd, writable=False)
        memory_pages.map_present(mapping.address, nbytes)  # the owner's huge pages are mapped as huge pages here too
        return cls(mapping, slot_bytes, slot_count, "a mapped arena")


def _allocate(owner_id: str, nbytes: int) -> tuple[int, AlignedMapping, str | None]:
    """Creates the memory of an arena: mapped, allocated (an error now instead of SIGBUS later), present and sealed.

    Returns:
        The descriptor, the mapping, and the kernel's reason against huge pages, or None.
    """
    fd = os.memfd_create(f"zipmoe-{owner_id}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        mapping = AlignedMapping(nbytes, fd)
        refusal = prefer_huge_pages(mapping.place)
        for offset, piece_bytes in memory_pages.pieces(nbytes):
            os.posix_fallocate(fd, offset, piece_bytes)
        memory_pages.populate(mapping.address, nbytes)
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd, mapping, refusal


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # A kernel before 5.1. Read-only descriptors still prevent readers from writing by accident.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SIZE_SEALS | fcntl.F_SEAL_SEAL)


def _seals(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # not a memfd
        return 0
