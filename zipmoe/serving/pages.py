"""Keeps the ledger of the KV pages by page number. It holds no keys and no values.

    free                 --allocate-->   used
    used                 --publish-->    used, in the index
    used                 --release-->    free
    used                 --share-->      used              for a sequence with the same beginning
    used, in the index   --release-->    cached
    cached               --adopt-->      used, in the index
    cached               --evict-->      free                  the least recently released page first

A release changes the state of a page only when it removes the last reference.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zipmoe.errors import InternalError

PAGE_TOKENS = 32
"""Tokens of a page, which is the unit of allocation and of prefix reuse."""

ROOT = 0
"""Serial number of the beginning of every sequence. No page has this number."""


def pages_of(tokens: int) -> int:
    """Returns the number of pages for a number of tokens."""
    return -(-tokens // PAGE_TOKENS)


class PageContent(NamedTuple):
    """Tokens of a full page, and the way in which they were computed.

    Together with the pages before it, the content determines the keys and values of the page. The index compares the
    tokens themselves, so a hash collision never makes two different prefixes equal.
    """

    tokens: tuple[int, ...]
    alone: bytes
    """One byte for each token: 1 if the token was computed as the only row of its request, 0 if it was computed with
    other rows of a prompt, or if both give the same bits."""


@dataclass(slots=True)
class _Page:
    """Entry of a published page: its serial number, the serial number of the page before it, and its content."""

    serial: int
    parent: int
    content: PageContent


@dataclass(frozen=True)
class PageCounts:
    """Number of pages in each state. The three numbers add up to the pool."""

    used: int
    cached: int
    free: int


class PageLedger:
    """Allocates pages, shares full pages among requests with the same prefix, and caches released pages until reuse.

    A page table is a list of page numbers in the order of the sequence. The ledger never modifies a table of a caller.
    """

    def __init__(self, page_count: int) -> None:
        """Makes a ledger of `page_count` free pages, numbered from 0."""
        self.page_count = page_count
        self._references = [0] * page_count
        self._published: dict[int, _Page] = {}
        self._index: dict[tuple[int, tuple[int, ...]], dict[bytes, int]] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._free = set(range(page_count))
        self._meant_for: dict[int, object] = {}
        self._next_serial = ROOT + 1

    @property
    def available(self) -> int:
        """Number of pages that can be allocated: free and cached pages."""
        return len(self._free) + len(self._cached)

    def counts(self) -> PageCounts:
        """Counts the pages in each state."""
        return PageCounts(self.page_count - self.available, len(self._cached), len(self._free))

    def allocate(self, owner: object, table: Sequence[int], count: int, expected: int) -> list[int] | None:
        """Allocates pages for a sequence, adjacent to its last page if possible.

        Args:
            owner: owner of the sequence. Free pages behind the allocated ones are reserved for the owner while other
                pages are free.
            table: pages that the sequence has already.
            count: pages wanted.
            expected: pages that the sequence may need in total beyond `table`, at least `count`.

        Returns:
            The pages; None, without any change, if fewer than `count` pages are available.
        """
        if count > self.available:
            return None
        taken: list[int] = []
        last = table[-1] if table else -1
        while len(taken) < count:
            page = last + 1 if last >= 0 and last + 1 in self._free else self._new_run(owner, expected - len(taken))
            self._free.remove(page)
            self._meant_for.pop(page, None)
            self._references[page] = 1
            taken.append(page)
            last = page
        return taken

    def adopt(self, tokens: Sequence[int], most_tokens: int, alone: bytes | None) -> tuple[list[int], bytes]:
        """Adopts the pages of the longest published prefix of a sequence, and adds a reference to each page.

        Args:
            tokens: the sequence.
            most_tokens: limit of the prefix, in tokens.
            alone: `PageContent.alone` of the sequence, which the pages have to match. None accepts any, and prefers
                pages of prompts.

        Returns:
            The pages, all full, and the `alone` bytes of their tokens.
        """
        pages: list[int] = []
        marks = bytearray()
        serial = ROOT
        for begin in range(0, most_tokens - PAGE_TOKENS + 1, PAGE_TOKENS):
            end = begin + PAGE_TOKENS
            variants = self._index.get((serial, tuple(tokens[begin:end])), {})
            wanted = min(variants, default=b"") if alone is None else alone[begin:end]
            if wanted not in variants:
                break
            page = variants[wanted]
            self._references[page] += 1
            self._cached.pop(page, None)
            pages.append(page)
            marks += wanted
            serial = self._published[page].serial
        return pages, bytes(marks)

    def share(self, pages: Sequence[int]) -> list[int]:
        """Adds a reference to pages of a sequence, for another sequence with the same beginning."""
        for page in pages:
            self._references[page] += 1
        return list(pages)

    def publish(self, table: Sequence[int], place: int, content: PageContent) -> None:
        """Publishes a full page, so that other sequences can adopt it.

        Has no effect if the page before it is not published, or if another page has the same content and prefix.

        Args:
            table: page table of the sequence.
            place: index of the page in the table.
            content: content of the page.
        """
        page = table[place]
        parent = self._published.get(table[place - 1]) if place else None
        if page in self._published or (place and parent is None):
            return
        parent_serial = ROOT if parent is None else parent.serial
        variants = self._index.setdefault((parent_serial, content.tokens), {})
        if content.alone in variants:
            return
        variants[content.alone] = page
        self._published[page] = _Page(self._next_serial, parent_serial, content)
        self._next_serial += 1

    def release(self, owner: object, table: Sequence[int]) -> None:
        """Releases the pages of a sequence, and drops the owner's reservations.

        Pages without references become free, or cached if they are published. The last pages of a sequence are cached
        first and so evicted first.

        Raises:
            InternalError: a page has no reference.
        """
        for page in reversed(table):
            if not self._references[page]:
                raise InternalError(f"page {page} of the KV cache is released more often than it was taken")
            self._references[page] -= 1
            if self._references[page]:
                continue
            if page in self._published:
                self._cached[page] = None
            else:
                self._free.add(page)
        for page in [page for page, whose in self._meant_for.items() if whose is owner]:
            del self._meant_for[page]

    def _new_run(self, owner: object, expected: int) -> int:
        """Chooses the page where a sequence continues if the page behind its last page is taken.

        Reserves the following pages of the run for the owner. The smallest run with `expected` pages is preferred, else
        the longest run. Without free pages, a cached page is evicted.
        """
        if not self._free:
            return self._evict()
        runs = list(self._runs(owner)) or [(page, 1) for page in sorted(self._free)]
        enough = [run for run in runs if run[1] >= expected]
        first, length = min(enough, key=lambda run: run[1]) if enough else max(runs, key=lambda run: run[1])
        for page in range(first, first + min(length, expected)):
            self._meant_for[page] = owner
        return first

    def _runs(self, owner: object) -> Iterator[tuple[int, int]]:
        """Yields runs of adjacent free pages without another owner's reservation, as (first page, length)."""
        first = length = 0
        for page in sorted(self._free):
            if self._meant_for.get(page, owner) is not owner:
                continue
            if length and page == first + length:
                length += 1
                continue
            if length:
                yield first, length
            first, length = page, 1
        if length:
            yield first, length

    def _evict(self) -> int:
        """Frees the cached page that was released first, and returns its number."""
        page, _ = self._cached.popitem(last=False)
        published = self._published.pop(page)
        variants = self._index[published.parent, published.content.tokens]
        del variants[published.content.alone]
        if not variants:
            del self._index[published.parent, published.content.tokens]
        self._free.add(page)
        return page
