"""The readable twin of tile form in numpy: reads and writes the bytes of native/tile/FORMAT.md as the kernels do."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bf16 = NDArray[np.uint16]
Bytes = NDArray[np.uint8]

MAGIC = b"ZMT1"
LINE = 64
OUTPUTS, BLOCK_INPUTS, GROUP = 32, 1024, 64
LEVELS, RANKS, MOST_OFFSET = 5, 16, 127
CODED, RAW = 0, 1
BLOCK_HEADER = struct.Struct("<4HHHI")  # codes of levels 2 to 5, exceptions, kind, zero

SAMPLED_COLUMNS, EXCEPTION_BITS, MIDDLE = 64, 28, 64

PLACE = np.arange(GROUP)
OUTPUT_OF, INPUT_OF = PLACE // 4 + 16 * (PLACE % 2), PLACE // 2 % 2
"""Output and input of the weight at each place of a group."""

SWAPPED = PLACE ^ 1
"""Place of the SM byte of each weight."""


class NotTiles(Exception):
    """Bytes that are not the matrix in tile form."""


Refusal = NotTiles


def rounded(count: int, step: int) -> int:
    return -(-count // step) * step


def level_bytes(codes: int) -> int:
    return rounded(codes, GROUP) // 4


def groups_of(k: int) -> list[int]:
    """Groups of each block of a tile."""
    return [-(-min(BLOCK_INPUTS, k - begin) // 2) for begin in range(0, k, BLOCK_INPUTS)]


def bound(n: int, k: int) -> int:
    tiles = -(-n // OUTPUTS)
    tile = LINE + sum(LINE + 2 * GROUP * groups for groups in groups_of(k))
    return rounded(12 + 4 * (tiles + 1), LINE) + tiles * tile


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(tiles: bytes, n: int, k: int) -> Bf16:
    """Recovers n rows of k weights.

    Raises:
        NotTiles: the bytes are not such a matrix.
    """
    count = -(-n // OUTPUTS)
    outline = rounded(12 + 4 * (count + 1), LINE)
    if len(tiles) < outline or tiles[:12] != MAGIC + struct.pack("<II", n, k):
        raise NotTiles("outline")
    places = [LINE * place for place in struct.unpack_from(f"<{count + 1}I", tiles, 12)]
    if places[0] != outline or places[-1] > len(tiles):
        raise NotTiles("places")
    weight = np.zeros((count * OUTPUTS, k), np.uint16)
    for index in range(count):
        begin, end = places[index : index + 2]
        if not (outline <= begin and begin + LINE <= end <= places[-1]):
            raise NotTiles("place of a tile")
        weight[index * OUTPUTS : (index + 1) * OUTPUTS] = _decode_tile(tiles[begin:end], k)
    return weight[:n]


def _decode_tile(tile: bytes, k: int) -> Bf16:
    bases = np.frombuffer(tile, np.uint8, OUTPUTS)
    table = np.frombuffer(tile, np.uint8, RANKS, OUTPUTS)
    if table.max() > MOST_OFFSET or any(tile[OUTPUTS + RANKS : LINE]):
        raise NotTiles("table")
    blocks, at = [np.empty((OUTPUTS, 0), np.uint16)], LINE
    for groups in groups_of(k):
        if len(tile) < at + BLOCK_HEADER.size:
            raise NotTiles("block")
        *deeper, exceptions, kind, zero = BLOCK_HEADER.unpack_from(tile, at)
        if zero:
            raise NotTiles("zero")
        if kind == RAW:
            if deeper[0] or exceptions or any(deeper[1:]):
                raise NotTiles("codes of a raw block")
            at += LINE
            bf16 = np.frombuffer(_exactly(tile, at, 2 * GROUP * groups), np.uint16).reshape(groups, 2, 16, 2)
            at += 2 * GROUP * groups
            blocks.append(bf16.transpose(1, 2, 0, 3).reshape(OUTPUTS, 2 * groups))
        elif kind == CODED:
            coded = _Coded([GROUP * groups, *deeper], exceptions)
            blocks.append(coded.decode(tile, at, bases, table))
            at = coded.end(at)
        else:
            raise NotTiles("kind")
    if at != len(tile):
        raise NotTiles("end of a tile")
    return np.concatenate(blocks, axis=1)[:, :k]


def _exactly(tile: bytes, begin: int, count: int) -> bytes:
    part = tile[begin : begin + count]
    if len(part) != count:
        raise NotTiles("size")
    return part


@dataclass(frozen=True)
class _Coded:
    """Sizes of a coded block."""

    codes: list[int]
    exceptions: int

    def end(self, at: int) -> int:
        levels = sum(map(level_bytes, self.codes))
        return at + rounded(rounded(BLOCK_HEADER.size + 3 * self.exceptions, 16) + levels, LINE) + self.codes[0]

    def decode(self, tile: bytes, begin: int, bases: Bytes, table: Bytes) -> Bf16:
        if sorted(self.codes, reverse=True) != self.codes or self.exceptions > self.codes[1]:
            raise NotTiles("codes")
        at = begin + BLOCK_HEADER.size
        _exactly(tile, begin, self.end(begin) - begin)
        positions = np.frombuffer(tile, np.uint16, self.exceptions, at)
        offsets = np.frombuffer(tile, np.uint8, self.exceptions, at + 2 * self.exceptions)
        at = begin + rounded(BLOCK_HEADER.size + 3 * self.exceptions, 16)
        escapes = np.empty(0, np.uint8)
        for level in range(LEVELS - 1, -1, -1):
            codes = unpack(_exactly(tile, at, level_bytes(self.codes[level])))
            at += level_bytes(self.codes[level])
            found = np.append(table[15], table[3 * level : 3 * level + 3])[codes]
            if level < LEVELS - 1:
                if (codes == 0).sum() != len(escapes):
                    raise NotTiles("escapes")
                found[codes == 0] = escapes
            escapes = found[: self.codes[level]].copy()
            if level == 1:
                if (positions >= self.codes[1]).any():
                    raise NotTiles("position")
                for position, offset in zip(positions, offsets, strict=True):
                    escapes[position] = offset
        groups = self.codes[0] // GROUP
        exponents = (escapes.reshape(groups, GROUP) + bases[OUTPUT_OF]).astype(np.uint16)
        sm = np.frombuffer(tile, np.uint8, self.codes[0], self.end(begin) - self.codes[0])
        sm = sm.reshape(groups, GROUP)[:, SWAPPED].astype(np.uint16)
        block = np.empty((OUTPUTS, groups, 2), np.uint16)
        block[OUTPUT_OF, :, INPUT_OF] = ((sm & 1) << 15 | (exponents & 0xFF) << 7 | sm >> 1).T
        return block.reshape(OUTPUTS, 2 * groups)


def unpack(packed: bytes) -> Bytes:
    groups = np.frombuffer(packed, np.uint8).reshape(-1, 1, 16)
    return (groups >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(-1)


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode(weight: Bf16) -> bytes:
    """Writes the bytes that the kernels write."""
    n, k = weight.shape
    count = -(-n // OUTPUTS)
    tiles = [_encode_tile(weight[begin : begin + OUTPUTS]) for begin in range(0, n, OUTPUTS)]
    outline = rounded(12 + 4 * (count + 1), LINE)
    places = np.cumsum([outline, *map(len, tiles)]) // LINE
    header = MAGIC + struct.pack("<II", n, k) + places.astype("<u4").tobytes()
    return b"".join([header.ljust(outline, b"\0"), *tiles])


def _encode_tile(rows: Bf16) -> bytes:
    count, k = rows.shape
    bases, table = choose((rows >> 7 & 0xFF).astype(np.uint8))
    padded = np.zeros((OUTPUTS, k + k % 2), np.uint16)
    padded[:count, :k] = rows
    all_bases = np.append(bases, np.full(OUTPUTS - count, -int(table[0]) & 0xFF)).astype(np.uint8)
    blocks = [
        _encode_block(padded[:, begin : begin + BLOCK_INPUTS], all_bases, table) for begin in range(0, k, BLOCK_INPUTS)
    ]
    return b"".join([(all_bases.tobytes() + table.tobytes()).ljust(LINE, b"\0"), *blocks])


def _encode_block(block: Bf16, bases: Bytes, table: Bytes) -> bytes:
    groups = block.reshape(OUTPUTS, -1, 2)[OUTPUT_OF, :, INPUT_OF].T  # by group and place
    raw_bytes = LINE + 2 * groups.size
    offsets = ((groups >> 7 & 0xFF).astype(np.uint8) - bases[OUTPUT_OF]).reshape(-1)
    rank_of = np.full(256, 255)
    rank_of[table] = np.arange(RANKS)
    ranks = rank_of[offsets]
    excepted = ranks == 255
    ranks[excepted] = 3
    escaped = ranks >= 3
    positions = (np.cumsum(escaped) - 1)[excepted].astype("<u2")
    levels, counts = [], []
    for level in range(LEVELS):
        counts.append(len(ranks))
        levels.append(pack(np.where(ranks < 3 * level + 3, ranks - 3 * level + 1, 0)))
        ranks = ranks[ranks >= 3 * level + 3]
    head = BLOCK_HEADER.pack(*counts[1:], len(positions), CODED, 0) + positions.tobytes() + offsets[excepted].tobytes()
    coded = head.ljust(rounded(len(head), 16), b"\0") + b"".join(reversed(levels))
    coded = coded.ljust(rounded(len(coded), LINE), b"\0")
    if len(coded) + groups.size >= raw_bytes:
        outputs = block.reshape(2, 16, -1, 2).transpose(2, 0, 1, 3)
        return BLOCK_HEADER.pack(0, 0, 0, 0, 0, RAW, 0).ljust(LINE, b"\0") + outputs.tobytes()
    sm = ((groups << 1 | groups >> 15) & 0xFF).astype(np.uint8)
    return coded + sm[:, SWAPPED].tobytes()


def pack(codes: NDArray[np.int64]) -> bytes:
    padded = np.append(codes, np.ones(-len(codes) % GROUP, np.int64)).reshape(-1, 4, 16)
    return (padded << np.array([0, 2, 4, 6])[:, None]).sum(axis=1).astype(np.uint8).tobytes()


def choose(exponents: Bytes) -> tuple[Bytes, Bytes]:
    """Chooses the bases and the table of a tile from a sample of its columns."""
    k = exponents.shape[1]
    sample = exponents[:, :: max(k // SAMPLED_COLUMNS, 1)][:, :SAMPLED_COLUMNS]
    by_row = np.array([_best_base(row) for row in sample], np.uint8)
    counts = np.bincount(sample.ravel(), minlength=256)
    held = [np.roll(counts, -first)[: MOST_OFFSET + 1].sum() for first in range(0, 256, MIDDLE)]
    common = np.full(len(exponents), MIDDLE * int(np.argmax(held)), np.uint8)
    bits, table = _best_table(sample - by_row[:, None])
    common_bits, common_table = _best_table(sample - common[:, None])
    return (common, common_table) if common_bits - common_bits // 64 < bits else (by_row, table)


def _best_base(row: Bytes) -> int:
    counts = np.bincount(row, minlength=258)
    three = counts[:256] + counts[1:257] + counts[2:258]
    return (int(np.argmax(three)) - MIDDLE) & 0xFF


def _best_table(offsets: Bytes) -> tuple[int, Bytes]:
    counts = np.bincount(offsets.ravel(), minlength=256)
    best = sorted(range(MOST_OFFSET + 1), key=lambda offset: (-counts[offset], offset))[:RANKS]
    left = [int(counts.sum() - counts[best[:rank]].sum()) for rank in range(RANKS + 1)]
    bits = 2 * sum(left[rank] for rank in range(0, 3 * LEVELS, 3)) + EXCEPTION_BITS * left[RANKS]
    following = best[0]
    for rank in range(1, RANKS):
        if counts[best[rank]] == 0:
            while following in best[:rank]:
                following = (following - 1) & MOST_OFFSET
            best[rank] = following
    return bits, np.array(best, np.uint8)
