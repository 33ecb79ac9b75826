"""The readable twin of the cascade kernels, in plain Python: the reference that every kernel is tested against.

The twin writes and reads the chunks of FORMAT.md, section `cascade`, byte for byte as the kernels do, but is about a
thousand times slower. Only tests use the twin.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from zipmoe.errors import CorruptData

HEADER = struct.Struct("<4sIII")  # magic, weights, cols, block_rows
ENTRY = struct.Struct("<I4HHBB")  # end, codes of levels 2 to 5, exceptions, kind, zero
MAGIC = b"ZMC1"
RAW, TABLE, WINDOWS = 0, 1, 2
LEVELS, RANKS, ESCAPE = 5, 16, 3
GROUP, GROUP_BYTES = 64, 16
MOST_WEIGHTS = 65_536


def window_table(first: int, growth: int) -> list[int]:
    """Lists the 16 exponents of a window by rank. Level 1 has the first three, each further level three around them."""
    below, above = first - 1, first + 3
    table = [first, first + 1, first + 2]
    for level in range(2, LEVELS + 1):
        up = growth >> 2 * (level - 2) & 3
        table += [above + step for step in range(up)] + [below - step for step in range(3 - up)]
        above, below = above + up, below - (3 - up)
    return [exponent & 0xFF for exponent in (*table, below)]


def pack_codes(codes: Sequence[int]) -> bytes:
    """Packs the codes of one level: whole groups, then the remaining codes in as few bytes as possible."""
    packed = bytearray()
    for begin in range(0, len(codes), GROUP):
        group = codes[begin : begin + GROUP]
        width = -(-len(group) // 4)
        shared = bytearray(width)
        for index, code in enumerate(group):
            shared[index % width] |= code << 2 * (index // width)
        packed += shared
    return bytes(packed)


def unpack_codes(packed: bytes, count: int) -> Iterator[int]:
    """Yields the codes of one level."""
    for begin in range(0, count, GROUP):
        size = min(GROUP, count - begin)
        width = -(-size // 4)
        group = packed[begin // 4 : begin // 4 + width]
        for index in range(size):
            yield group[index % width] >> 2 * (index // width) & 3


def level_bytes(count: int) -> int:
    """Computes the bytes of a level of `count` codes."""
    return -(-count // 4)


def padded(count: int) -> int:
    """Computes the level-1 codes of a row of `count` weights: the weights, padded to whole groups."""
    return -(-count // GROUP) * GROUP


@dataclass(frozen=True)
class Coding:
    """A coded block of rows, with a shared table or a table for each row."""

    kind: int
    stored_tables: bytes
    levels: list[bytes]
    counts: list[int]
    exceptions: list[tuple[int, int]]

    @property
    def payload(self) -> bytes:
        """Payload bytes of the block."""
        positions = b"".join(struct.pack("<H", position) for position, _ in self.exceptions)
        exponents = bytes(exponent for _, exponent in self.exceptions)
        return self.stored_tables + positions + exponents + b"".join(reversed(self.levels))


def code_block(rows: Sequence[bytes], tables: Sequence[Sequence[int]], kind: int, stored_tables: bytes) -> Coding:
    """Codes a block, each row with its own entry of `tables`."""
    stride = padded(len(rows[0]))
    ranks: list[int] = []
    exceptions: list[tuple[int, int]] = []
    for index, (row, table) in enumerate(zip(rows, tables, strict=True)):
        for col, exponent in enumerate(row):
            if exponent not in table:
                exceptions.append((index * stride + col, exponent))
            ranks.append(table.index(exponent) if exponent in table else 0)
        ranks += [0] * (padded(len(row)) - len(row))
    levels, counts = [], []
    for level in range(LEVELS):
        levels.append(pack_codes([min(rank - 3 * level, ESCAPE) for rank in ranks]))
        counts.append(len(ranks))
        ranks = [rank for rank in ranks if rank >= 3 * (level + 1)]
    return Coding(kind, stored_tables, levels, counts, exceptions)


def best_window(row: bytes) -> tuple[int, int]:
    """Finds the window that covers most weights at each level. On a tie the lower exponent or the fewer above win."""
    counts = Counter(row)

    def held(exponents: Iterable[int]) -> int:
        return sum(counts[exponent & 0xFF] for exponent in exponents)

    first = max(range(256), key=lambda lowest: (held(range(lowest, lowest + 3)), -lowest))
    below, above, growth = first - 1, first + 3, 0
    for level in range(2, LEVELS + 1):
        up = max(range(4), key=lambda up: (held((*range(above, above + up), *range(below - 2 + up, below + 1))), -up))
        growth |= up << 2 * (level - 2)
        above, below = above + up, below - (3 - up)
    return first, growth


def compress(e_plane: bytes, cols: int, block_rows: int) -> bytes:
    """Compresses exponents as `zipmoe.kernels.cascade.compress_cascade` does."""
    block_rows = min(block_rows, MOST_WEIGHTS // padded(cols))
    rows = [e_plane[begin : begin + cols] for begin in range(0, len(e_plane), cols)]
    blocks = [rows[begin : begin + block_rows] for begin in range(0, len(rows), block_rows)]
    entries, payloads = b"", b""
    begin = HEADER.size + len(blocks) * ENTRY.size
    for block in blocks:
        raw = b"".join(block)
        order = sorted(range(256), key=lambda exponent, counts=Counter(raw): (-counts[exponent], exponent))  # type: ignore[misc]
        windows = [best_window(row) for row in block]
        codings = (
            code_block(block, [order[:RANKS]] * len(block), TABLE, bytes(order[:RANKS])),
            code_block(block, [window_table(*window) for window in windows], WINDOWS, b"".join(map(bytes, windows))),
        )
        best = Coding(RAW, raw, [], [0] * LEVELS, [])
        for coding in codings:
            counts_fit = max(len(coding.exceptions), coding.counts[1]) < 1 << 16
            if counts_fit and len(coding.payload) < len(best.payload):
                best = coding
        payloads += best.payload
        entries += ENTRY.pack(begin + len(payloads), *best.counts[1:], len(best.exceptions), best.kind, 0)
    return HEADER.pack(MAGIC, len(e_plane), cols, block_rows) + entries + payloads


def decompress(chunk: bytes, count: int) -> bytes:
    """Recovers exactly `count` exponents.

    Raises:
        CorruptData: The chunk breaks a rule of FORMAT.md or holds another number of exponents.
    """
    _check(len(chunk) >= HEADER.size, "header is cut off")
    magic, weights, cols, block_rows = HEADER.unpack_from(chunk)
    _check(magic == MAGIC and weights == count, "magic or number of weights is wrong")
    _check(cols >= 1 and block_rows >= 1 and padded(cols) * block_rows <= MOST_WEIGHTS, "block is too large")
    widths = [min(cols, count - begin) for begin in range(0, count, cols)]
    blocks = [widths[begin : begin + block_rows] for begin in range(0, len(widths), block_rows)]
    begin = HEADER.size + len(blocks) * ENTRY.size
    _check(begin <= len(chunk), "entries are cut off")
    exponents = bytearray()
    for index, block in enumerate(blocks):
        end, *counts, exceptions, kind, zero = ENTRY.unpack_from(chunk, HEADER.size + index * ENTRY.size)
        _check(begin <= end <= len(chunk) and zero == 0, "entry is wrong")
        exponents += _decode_block(chunk[begin:end], block, counts, exceptions, kind)
        begin = end
    _check(begin == len(chunk), "blocks do not end where the chunk does")
    return bytes(exponents)


def _decode_block(payload: bytes, widths: list[int], counts: list[int], exceptions: int, kind: int) -> bytes:
    if kind == RAW:
        _check(not any((*counts, exceptions)) and len(payload) == sum(widths), "raw block is wrong")
        return payload
    _check(kind in (TABLE, WINDOWS), "kind is unknown")
    counts = [sum(map(padded, widths)), *counts]
    sizes = [RANKS if kind == TABLE else 2 * len(widths), 2 * exceptions, exceptions]
    sizes += map(level_bytes, reversed(counts))
    _check(sum(sizes) == len(payload), "block has another size")
    ends = list(accumulate(sizes))
    tables, positions, values, *levels = (payload[end - size : end] for size, end in zip(sizes, ends, strict=True))

    ranks: list[int] = []
    for level in range(LEVELS - 1, -1, -1):
        escapes, deepest = iter(ranks), level == LEVELS - 1
        codes = list(unpack_codes(levels[LEVELS - 1 - level], counts[level]))
        _check(deepest or codes.count(ESCAPE) == len(ranks), "escapes and codes of the next level differ")
        ranks = [3 * level + code if deepest or code != ESCAPE else next(escapes) for code in codes]

    stride, rows, begin = padded(widths[0]), [], 0
    for index, width in enumerate(widths):
        table = list(tables) if kind == TABLE else window_table(*tables[2 * index : 2 * index + 2])
        rows.append(bytearray(table[rank] for rank in ranks[begin : begin + width]))
        begin += padded(width)
    last = -1
    for (position,), value in zip(struct.iter_unpack("<H", positions), values, strict=True):
        row, col = divmod(position, stride)
        _check(last < position and row < len(rows) and col < len(rows[row]), "position is wrong")
        rows[row][col] = value
        last = position
    return b"".join(rows)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise CorruptData(message)
