"""The readable twin of the Huffman kernels: slow, simple, and equal to the kernels byte for byte. Only tests use it.

FORMAT.md, section `huffman`, defines the meaning of a chunk. `compress` also defines the choices of the writer: kind,
bases and code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from zipmoe.errors import CorruptData

MAGIC = b"ZMH1"
STORED, CONSTANT, CODED = 0, 1, 2
HEADER_BYTES, TAIL_BYTES = 16, 8
STREAMS = 6
BLOCK_WEIGHTS = 1 << 16
LONGEST = 11

FEWEST_COLS = 256
MIDDLE = 128

Lengths = Mapping[int, int]
"""Bits of the codeword, by symbol; only symbols that occur."""


def compress(e_plane: bytes, cols: int | None = None) -> bytes:
    """Compresses exponents to the same chunk as `HuffmanCodec.compress`."""
    count = len(e_plane)
    if count > 0 and len(set(e_plane)) == 1:
        return _header(count, 0, CONSTANT) + e_plane[:1]
    stored = _header(count, 0, STORED) + e_plane
    if count == 0:
        return stored
    lengths, bases = _choose(e_plane, cols or 0)
    row_cols = (cols or 0) if bases else 0
    symbols = bytes((e - bases[i // row_cols]) % 256 for i, e in enumerate(e_plane)) if bases else e_plane
    spans = list(_stream_spans(count))
    in_front = _header(count, row_cols, CODED) + _write_lengths(lengths) + bytes(bases)
    at_most = len(in_front) + (2 + 1) * len(spans) + _bits(Counter(symbols), lengths) // 8 + TAIL_BYTES
    if at_most >= len(stored):
        return stored
    codewords = canonical_code(lengths)
    streams = [_write_stream(symbols[begin:end], codewords) for begin, end in spans]
    sizes = b"".join(len(stream).to_bytes(2, "little") for stream in streams)
    return in_front + sizes + b"".join(streams) + bytes(TAIL_BYTES)


def decompress(chunk: bytes, count: int) -> bytes:
    """Recovers exactly `count` exponents.

    Raises:
        CorruptData: The chunk does not hold exactly `count` exponents.
    """
    _check(len(chunk) >= HEADER_BYTES and chunk[:4] == MAGIC, "is no huffman chunk")
    declared, cols, kind = (int.from_bytes(chunk[at : at + 4], "little") for at in (4, 8, 12))
    _check(declared == count and (cols == 0 or kind == CODED), "is of another size")
    body = chunk[HEADER_BYTES:]
    if kind == STORED:
        _check(len(body) == count, "is of another size")
        return body
    if kind == CONSTANT:
        _check(len(body) == 1 and count > 0, "is of another size")
        return body * count
    _check(kind == CODED and count > 0, "is of no known kind")
    return _decompress_coded(body, count, cols)


def shortest_lengths(counts: Mapping[int, int]) -> Lengths:
    """Finds the shortest code with codewords of at most 11 bits, for at least two symbols (package-merge).

    Source: Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes, 1990.
    """
    leaves = [(count, (symbol,)) for symbol, count in sorted(counts.items()) if count > 0]
    leaves.sort(key=_weight)
    items: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(LONGEST):
        pairs = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(items[::2], items[1::2], strict=False)]
        items = sorted(leaves + pairs, key=_weight)  # among equal weights, leaves come first
    return Counter(symbol for _, symbols in items[: 2 * len(leaves) - 2] for symbol in symbols)


def canonical_code(lengths: Lengths) -> dict[int, str]:
    """Assigns canonical codewords, first bit first: counting up from the shortest, among equal lengths by symbol."""
    codewords: dict[int, str] = {}
    following = 0
    for symbol in sorted(lengths, key=lambda symbol: (lengths[symbol], symbol)):
        length = lengths[symbol]
        codewords[symbol] = f"{following >> (LONGEST - length):0{length}b}"
        following += 1 << (LONGEST - length)
    return codewords


def _weight(item: tuple[int, tuple[int, ...]]) -> int:
    return item[0]


def _header(count: int, cols: int, kind: int) -> bytes:
    return MAGIC + b"".join(number.to_bytes(4, "little") for number in (count, cols, kind))


def _bits(counts: Mapping[int, int], lengths: Lengths) -> int:
    return sum(count * lengths[symbol] for symbol, count in counts.items())


def _stream_spans(count: int) -> Iterator[tuple[int, int]]:
    """Yields (begin, end) of the exponents of each stream, block by block."""
    for begin in range(0, count, BLOCK_WEIGHTS):
        size = min(BLOCK_WEIGHTS, count - begin)
        each = -(-size // STREAMS)
        for stream in range(STREAMS):
            yield begin + min(size, stream * each), begin + min(size, (stream + 1) * each)


def _choose(e_plane: bytes, cols: int) -> tuple[Lengths, Sequence[int]]:
    """Chooses the code, and the bases of the rows if they save at least 1 bit of 128."""
    plain = Counter(e_plane)
    plain_lengths = shortest_lengths(plain)
    if not FEWEST_COLS <= cols < len(e_plane):
        return plain_lengths, ()
    rows = [Counter(e_plane[begin : begin + cols]) for begin in range(0, len(e_plane), cols)]
    bases = [(_upper_end(row) - MIDDLE) % 256 for row in rows]
    aligned = _from_bases(rows, bases)
    if len(aligned) < 2:
        return plain_lengths, ()
    lengths = shortest_lengths(aligned)
    if (_bits(aligned, lengths) + 8 * len(rows)) * 128 <= _bits(plain, plain_lengths) * 127:
        return lengths, bases
    return plain_lengths, ()


def _upper_end(row: Counter[int]) -> int:
    """Finds the smallest exponent that nine tenths of a row do not exceed. It follows the scale of the row."""
    exponents = sorted(row.elements())
    return exponents[-(-9 * len(exponents) // 10) - 1]


def _from_bases(rows: Sequence[Mapping[int, int]], bases: Sequence[int]) -> Mapping[int, int]:
    """Counts the symbols of all rows: exponents minus the base of their row, modulo 256."""
    symbols: Counter[int] = Counter()
    for row, base in zip(rows, bases, strict=True):
        symbols.update({(e - base) % 256: count for e, count in row.items()})
    return symbols


def _write_lengths(lengths: Lengths) -> bytes:
    """Writes the first and the last symbol, then the lengths of all symbols between them, two a byte."""
    first, last = min(lengths), max(lengths)
    nibbles = [lengths.get(symbol, 0) for symbol in range(first, last + 1)] + [0]
    return bytes([first, last]) + bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=False))


def _write_stream(symbols: bytes, codewords: Mapping[int, str]) -> bytes:
    """Writes the codewords of the symbols, last symbol first, from the lowest bit of the first byte on."""
    bits = "".join(codewords[symbol] for symbol in reversed(symbols))
    return int(bits[::-1] or "0", 2).to_bytes(-(-len(bits) // 8), "little")


def _decompress_coded(body: bytes, count: int, cols: int) -> bytes:
    _check(len(body) >= 2 and body[0] < body[1], "has no code")
    first, last = body[:2]
    bases_at = 2 + (last - first) // 2 + 1
    sizes_at = bases_at + (-(-count // cols) if cols else 0)
    spans = list(_stream_spans(count))
    begin = sizes_at + 2 * len(spans)
    _check(len(body) >= begin + TAIL_BYTES, "is cut off")
    sizes = [int.from_bytes(body[at : at + 2], "little") for at in range(sizes_at, begin, 2)]
    end = begin + sum(sizes)
    _check(len(body) == end + TAIL_BYTES and not any(body[end:]), "does not end with its streams and eight zeroes")
    symbol_of = {codeword: symbol for symbol, codeword in _read_code(first, last, body[2:bases_at]).items()}
    symbols = bytearray()
    for (from_symbol, to_symbol), size in zip(spans, sizes, strict=True):
        symbols += _read_stream(body[begin : begin + size], to_symbol - from_symbol, symbol_of)
        begin += size
    if not cols:
        return bytes(symbols)
    bases = body[bases_at:sizes_at]
    return bytes((symbol + bases[i // cols]) % 256 for i, symbol in enumerate(symbols))


def _read_code(first: int, last: int, packed: bytes) -> dict[int, str]:
    nibbles = [byte >> shift & 15 for byte in packed for shift in (0, 4)]
    lengths = {first + i: length for i, length in enumerate(nibbles) if length > 0}
    _check(max(lengths, default=0) <= last, "has lengths behind its last symbol")
    _check(max(nibbles) <= LONGEST, "has a codeword that is too long")
    _check(sum(2.0**-length for length in lengths.values()) == 1, "has no complete code")
    return canonical_code(lengths)


def _read_stream(stream: bytes, count: int, symbol_of: Mapping[str, int]) -> bytes:
    bits = "".join(f"{byte:08b}"[::-1] for byte in stream)
    symbols = bytearray()
    begin = 0
    for _ in range(count):
        end = begin + 1
        while bits[begin:end] not in symbol_of:
            _check(end < len(bits), "has a stream that is too short")
            end += 1
        symbols.append(symbol_of[bits[begin:end]])
        begin = end
    _check(len(bits) - begin < 8 and "1" not in bits[begin:], "has a stream that is too long")
    return bytes(reversed(symbols))


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise CorruptData(f"huffman e-chunk {what}")
