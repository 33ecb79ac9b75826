"""The readable twin of nibble form in numpy: reads and writes the bytes of native/nibble/FORMAT.md."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

Bf16 = NDArray[np.uint16]
Bytes = NDArray[np.uint8]

MAGIC = b"ZMN1"
UNIT = 32
OUTPUTS, RANKS, PASSES, GROUP, GROUP_BYTES, GROUP_INPUTS = 2, 8, 4, 64, 96, 128
TILE_HEADER = struct.Struct("<8s8s4I")
RAW = b"\xff" * 8
MOST_INPUTS, MOST_WEIGHTS = 1 << 25, 1 << 36
SAMPLED = 64

PLACE = np.arange(GROUP)
OUTPUT_OF = PLACE // 32
INPUT_OF = PLACE // 8 % 2 * 64 + PLACE % 32 // 16 * 8 + PLACE % 8
"""Output and input of the weight at each place of a group, in the first pass."""


class NotNibbles(Exception):
    """Bytes that are not the matrix in nibble form."""


Refusal = NotNibbles


def rounded(count: int) -> int:
    return -(-count // UNIT) * UNIT


def outline_bytes(n: int) -> int:
    return rounded(12 + 4 * (-(-n // OUTPUTS) + 1))


def raw_bytes(k: int) -> int:
    return rounded(TILE_HEADER.size + 2 * OUTPUTS * k)


def coded_bytes(k: int, exceptions: int) -> int:
    groups, rest = divmod(k, GROUP_INPUTS)
    return rounded(TILE_HEADER.size + PASSES * groups * GROUP_BYTES + 2 * OUTPUTS * rest + 4 * exceptions)


def bound(n: int, k: int) -> int:
    return outline_bytes(n) + -(-n // OUTPUTS) * raw_bytes(k)


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(matrix: bytes, n: int, k: int) -> Bf16:
    """Recovers n rows of k weights.

    Raises:
        NotNibbles: the bytes are not such a matrix.
    """
    count, outline = -(-n // OUTPUTS), outline_bytes(n)
    if len(matrix) < outline or matrix[:12] != MAGIC + struct.pack("<II", n, k):
        raise NotNibbles("outline")
    places = [UNIT * place for place in struct.unpack_from(f"<{count + 1}I", matrix, 12)]
    if places[0] != outline or places[-1] > len(matrix):
        raise NotNibbles("places")
    weight = np.zeros((count * OUTPUTS, k), np.uint16)
    for index in range(count):
        begin, end = places[index : index + 2]
        if not (outline <= begin and begin + TILE_HEADER.size <= end <= places[-1]):
            raise NotNibbles("place of a tile")
        weight[index * OUTPUTS : (index + 1) * OUTPUTS] = _decode_tile(matrix[begin:end], k)
    return weight[:n]


def _decode_tile(tile: bytes, k: int) -> Bf16:
    *tables, first, second, third, fourth = TILE_HEADER.unpack_from(tile)
    counts = (first, second, third, fourth)
    if tile[0] == 0xFF:
        if tables != [RAW, RAW] or any(counts) or len(tile) != raw_bytes(k):
            raise NotNibbles("raw tile")
        return np.frombuffer(tile, "<u2", OUTPUTS * k, TILE_HEADER.size).reshape(OUTPUTS, k)
    if max(tables[0] + tables[1]) > 0x7F or len(tile) != coded_bytes(k, sum(counts)):
        raise NotNibbles("coded tile")
    groups, rest = divmod(k, GROUP_INPUTS)
    at = TILE_HEADER.size
    weight = np.zeros((OUTPUTS, k), np.uint16)
    listed = at + PASSES * groups * GROUP_BYTES + 2 * OUTPUTS * rest
    for number in range(PASSES):
        coded = np.frombuffer(tile, np.uint8, groups * GROUP_BYTES, at).reshape(groups, GROUP_BYTES)
        at += coded.size
        highs = _high_bytes(coded[:, GROUP:], tables)
        entries = np.frombuffer(tile, "<u4", counts[number], listed)
        listed += entries.nbytes
        where = entries >> 8
        if (np.diff(where.astype(np.int64)) <= 0).any() or (len(where) and where[-1] >= groups * GROUP):
            raise NotNibbles("exceptions")
        highs.reshape(-1)[where] = entries & 0xFF
        inputs = np.arange(groups)[:, None] * GROUP_INPUTS + INPUT_OF + number * 16
        weight[np.broadcast_to(OUTPUT_OF, inputs.shape), inputs] = highs.astype(np.uint16) << 8 | coded[:, :GROUP]
    weight[:, k - rest :] = np.frombuffer(tile, "<u2", OUTPUTS * rest, at).reshape(OUTPUTS, rest)
    return weight


def _high_bytes(nibbles: Bytes, tables: list[bytes]) -> Bytes:
    highs = np.empty((len(nibbles), GROUP), np.uint8)
    for output, nibble in enumerate((nibbles & 15, nibbles >> 4)):
        table = np.frombuffer(tables[output], np.uint8)
        highs[:, output == OUTPUT_OF] = table[nibble & 7] | nibble >> 3 << 7
    return highs


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode(weight: Bf16) -> bytes:
    """Brings a matrix into nibble form."""
    n, k = weight.shape
    pairs = [weight[[row, min(row + 1, n - 1)]] for row in range(0, n, OUTPUTS)]
    tiles = [_encode_tile(pair) for pair in pairs]
    outline = outline_bytes(n)
    places = np.cumsum([outline, *map(len, tiles)]) // UNIT
    header = MAGIC + struct.pack("<II", n, k) + places.astype("<u4").tobytes()
    return b"".join([header.ljust(outline, b"\0"), *tiles])


def _encode_tile(rows: Bf16) -> bytes:
    k = rows.shape[1]
    groups, rest = divmod(k, GROUP_INPUTS)
    raw = TILE_HEADER.pack(RAW, RAW, 0, 0, 0, 0) + rows.astype("<u2").tobytes()
    if coded_bytes(k, 0) >= raw_bytes(k):
        return raw.ljust(raw_bytes(k), b"\0")
    tables = [choose(row[: k - rest]) for row in rows]
    coded, listed = [], []
    for number in range(PASSES):
        inputs = np.arange(groups)[:, None] * GROUP_INPUTS + INPUT_OF + number * 16
        weights = rows[np.broadcast_to(OUTPUT_OF, inputs.shape), inputs]
        highs = (weights >> 8).astype(np.uint8)
        ranks = np.empty_like(highs)
        for output, table in enumerate(tables):
            rank_of = np.full(128, 255, np.uint8)
            rank_of[table] = np.arange(RANKS)
            ranks[:, output == OUTPUT_OF] = rank_of[highs[:, output == OUTPUT_OF] & 0x7F]
        places = np.flatnonzero(ranks.reshape(-1) == 255)
        listed.append((places << 8 | highs.reshape(-1)[places]).astype("<u4"))
        nibbles = np.where(ranks == 255, 0, ranks) | highs >> 7 << 3
        both = nibbles[:, :32] | nibbles[:, 32:] << 4
        coded.append(np.concatenate([(weights & 0xFF).astype(np.uint8), both], axis=1).tobytes())
    nbytes = coded_bytes(k, sum(map(len, listed)))
    if nbytes >= raw_bytes(k):
        return raw.ljust(raw_bytes(k), b"\0")
    header = TILE_HEADER.pack(*(bytes(table) for table in tables), *map(len, listed))
    last = rows[:, k - rest :].astype("<u2").tobytes() + b"".join(each.tobytes() for each in listed)
    return (header + b"".join(coded) + last).ljust(nbytes, b"\0")


def choose(row: Bf16) -> list[int]:
    """Chooses the high bytes that have a rank: the commonest of a sample, and the greatest of all."""
    highs = (row & 0x7FFF) >> 8
    sample = highs[:: max(len(row) // SAMPLED, 1)][:SAMPLED]
    counts = np.bincount(sample, minlength=128)
    table = sorted((high for high in range(128) if counts[high]), key=lambda high: (-counts[high], -high))[:RANKS]
    if highs.max() not in table:
        table = [*table[: RANKS - 1], int(highs.max())]
    following = table[0]
    while len(table) < RANKS:
        following = (following - 1) % 128
        if following not in table:
            table.append(following)
    return table
