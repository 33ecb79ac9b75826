"""Mappings at addresses where a huge page can begin. The kernel's own choice of an address does not promise that."""

from __future__ import annotations

import mmap

from zipmoe.arena import memory_pages
from zipmoe.arena.huge_pages import AddressRange, huge_page_size


class AlignedMapping:
    """Shared memory of a file, or anonymous memory of this process, mapped at a multiple of a huge page's size.

    A mapping of less than a huge page begins on any page. Views keep the mapping open. The mapping reserves more
    addresses than it has bytes; the spare addresses take no memory.
    """

    def __init__(self, nbytes: int, fd: int | None = None, *, writable: bool = True) -> None:
        """Maps memory without touching any page.

        Args:
            nbytes: size of the mapping, at least 1.
            fd: a file of at least `nbytes` bytes, which the caller may close afterwards; None for zeroes.
            writable: whether this process may write; otherwise the kernel refuses writes.

        Raises:
            OSError: the kernel refuses: no addresses are left, or the file may not be mapped in this way.
        """
        size = huge_page_size()
        spare = size - mmap.PAGESIZE if nbytes >= size else 0
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # Python cannot choose an address. So more than needed is mapped, and the file goes over the aligned part.
        self._reserved = mmap.mmap(
            -1,
            nbytes + spare,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | memory_pages.MAP_NORESERVE,
            prot=protection,
        )
        start = memory_pages.address_of(self._reserved)
        self.address = -(-start // size) * size if spare else start
        self.nbytes = nbytes
        self._begin = self.address - start
        if fd is not None:
            try:
                memory_pages.map_file_over(self.address, nbytes, protection, fd)
            except OSError:
                self._reserved.close()
                raise

    @property
    def place(self) -> AddressRange:
        """Address and size of the mapping, valid until `close`."""
        return AddressRange(self.address, self.nbytes)

    @property
    def closed(self) -> bool:
        """Whether `close` has unmapped the memory."""
        return self._reserved.closed

    def view(self, begin: int = 0, nbytes: int | None = None) -> memoryview:
        """Returns a view of `nbytes` bytes from byte `begin` on, by default of all bytes.

        Raises:
            ValueError: the mapping is closed.
        """
        first = self._begin + begin
        return memoryview(self._reserved)[first : first + (self.nbytes - begin if nbytes is None else nbytes)]

    def close(self) -> None:
        """Unmaps the memory; a second call does nothing. Without `close` the memory is unmapped with the last view.

        Raises:
            BufferError: views still exist. The memory stays mapped.
        """
        self._reserved.close()
