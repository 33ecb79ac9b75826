"""Which pages of the KV cache belong to whom: a ledger over page numbers that holds no keys and no values.

free --allocate--> used --release--> free
|                  ^
| publish          | evicted, least recently released first
v                  |
used, in the index --release--> cached --adopt--> used again
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from zipmoe.errors import InternalError

PAGE_TOKENS = 32
"""Tokens of a page: the unit in which the cache is given out and in which prefixes are reused."""

ROOT = 0
"""Serial number of the beginning of every sequence, which is no page."""


def pages_of(tokens: int) -> int:
    """The pages that so many tokens take."""
    return -(-tokens // PAGE_TOKENS)


class PageContent(NamedTuple):
    """What a full page holds, given what the pages before it hold.

    The tokens are compared themselves: two prefixes are never taken for one another because of a hash.
    """

    tokens: tuple[int, ...]
    alone: bytes
    """A byte for each token: 1 where it was computed as the only row of its request, 0 where as one of a prompt. In
    fp32 gates the two have different bits."""


@dataclass(slots=True)
class _Page:
    """A published page: where it is in the index."""

    serial: int
    parent: int
    content: PageContent


@dataclass(frozen=True)
class PageCounts:
    """Pages by state; the three add up to the pool."""

    used: int
    cached: int
    free: int


class PageLedger:
    """Gives pages out, shares full ones among requests with the same prefix, and keeps them while nobody wants more.

    A page table is a list of page numbers, in the order of the sequence; the ledger never changes one it is shown.
    """

    def __init__(self, page_count: int) -> None:
        """Makes a ledger of `page_count` free pages, numbered from 0."""
        self.page_count = page_count
        self._references = [0] * page_count
        self._published: dict[int, _Page] = {}
        self._index: dict[tuple[int, tuple[int, ...]], int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._free = set(range(page_count))
        self._meant_for: dict[int, object] = {}
        self._next_serial = ROOT + 1

    @property
    def available(self) -> int:
        """Pages that can be had: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    def counts(self) -> PageCounts:
        """Pages by state."""
        return PageCounts(self.page_count - self.available, len(self._cached), len(self._free))

    def allocate(self, owner: object, table: Sequence[int], count: int, expected: int) -> list[int] | None:
        """Takes pages for a sequence, next to its last one where that is possible.

        Args:
            owner: whose sequence it is; pages behind those it gets are kept free for it while there are others.
            table: the pages that the sequence has.
            count: pages wanted.
            expected: how many pages the sequence may come to need beyond `table`, at least `count`.

        Returns:
            The pages; None, and nothing has changed, if fewer than `count` can be had.
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

    def adopt(self, tokens: Sequence[int], most_tokens: int, alone: bytes | None = None) -> tuple[list[int], bytes]:
        """Takes the longest published prefix of a sequence.

        Args:
            tokens: the sequence.
            most_tokens: no more than so many tokens are taken.
            alone: how each token has to have been computed; None if that does not matter.

        Returns:
            The pages, all full, and how their tokens were computed.
        """
        pages: list[int] = []
        marks = bytearray()
        serial = ROOT
        for begin in range(0, most_tokens - PAGE_TOKENS + 1, PAGE_TOKENS):
            end = begin + PAGE_TOKENS
            page = self._index.get((serial, tuple(tokens[begin:end])))
            if page is None:
                break
            published = self._published[page]
            if alone is not None and published.content.alone != alone[begin:end]:
                break
            self._references[page] += 1
            self._cached.pop(page, None)
            pages.append(page)
            marks += published.content.alone
            serial = published.serial
        return pages, bytes(marks)

    def publish(self, table: Sequence[int], place: int, content: PageContent) -> None:
        """Lets others adopt a full page, if the pages before it are published and no other page holds the same.

        Args:
            table: of the sequence.
            place: of the page in the table.
            content: what it holds.
        """
        page = table[place]
        parent = self._published.get(table[place - 1]) if place else None
        if page in self._published or (place and parent is None):
            return
        parent_serial = ROOT if parent is None else parent.serial
        if (parent_serial, content.tokens) in self._index:
            return
        self._index[parent_serial, content.tokens] = page
        self._published[page] = _Page(self._next_serial, parent_serial, content)
        self._next_serial += 1

    def release(self, owner: object, table: Sequence[int]) -> None:
        """Gives the pages of a sequence back; those that are published stay until they are needed, ends first."""
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

    def forget(self) -> None:
        """Drops all that is cached: what the pool holds is no longer to be trusted."""
        while self._cached:
            self._evict()
        self._published.clear()
        self._index.clear()

    def _new_run(self, owner: object, expected: int) -> int:
        """Where a sequence goes on that cannot go on next to its last page."""
        if not self._free:
            return self._evict()
        runs = list(self._runs(owner)) or [(page, 1) for page in sorted(self._free)]
        enough = [run for run in runs if run[1] >= expected]
        first, length = min(enough, key=lambda run: run[1]) if enough else max(runs, key=lambda run: run[1])
        for page in range(first, first + min(length, expected)):
            self._meant_for[page] = owner
        return first

    def _runs(self, owner: object) -> Iterator[tuple[int, int]]:
        """Adjacent free pages that are meant for nobody else: the first and how many."""
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
        """Frees the cached page that was released first."""
        page, _ = self._cached.popitem(last=False)
        published = self._published.pop(page)
        del self._index[published.parent, published.content.tokens]
        self._free.add(page)
        return page
