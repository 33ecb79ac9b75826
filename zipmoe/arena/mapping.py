"""A mapping that begins where a huge page can begin, which the kernel's own choice of an address does not promise."""

from __future__ import annotations

import mmap

from zipmoe.arena import memory_pages
from zipmoe.arena.huge_pages import AddressRange, huge_page_size


class AlignedMapping:
    """Shared memory of a file, or anonymous memory of this process, mapped at a multiple of a huge page's size.

    Views keep it mapped. It takes more addresses than bytes, and no memory for those.
    """

    def __init__(self, nbytes: int, fd: int | None = None, *, writable: bool = True) -> None:
        """Maps memory; nothing of it is touched.

        Args:
            nbytes: at least 1.
            fd: a file of at least so many bytes, which the caller may close afterwards; None for zeroes.
            writable: whether it can be written to; otherwise the kernel refuses it to this process.

        Raises:
            OSError: the kernel refuses: no addresses are left, or the file may not be mapped like this.
        """
        size = huge_page_size()
        spare = size - mmap.PAGESIZE if nbytes >= size else 0
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # Python can map only where the kernel likes: so more than is needed, and the file over the part that fits.
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
        """Where it is, as long as it is mapped."""
        return AddressRange(self.address, self.nbytes)

    @property
    def closed(self) -> bool:
        """Whether it has been unmapped by `close`."""
        return self._reserved.closed

    def view(self, begin: int = 0, nbytes: int | None = None) -> memoryview:
        """Views some bytes, by default all.

        Raises:
            ValueError: it is closed.
        """
        first = self._begin + begin
        return memoryview(self._reserved)[first : first + (self.nbytes - begin if nbytes is None else nbytes)]

    def close(self) -> None:
        """Unmaps it; a second call does nothing. Without it, that happens with the last view.

        Raises:
            BufferError: views still exist. It stays mapped.
        """
        self._reserved.close()
