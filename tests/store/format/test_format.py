"""A reader written from FORMAT.md alone, with nothing of ours, recovers the golden stores."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard

from tests.golden.store_make import EXPERTS, GOLDEN, STORES, golden_tensors


def up(nbytes: int, alignment: int) -> int:
    return (nbytes + alignment - 1) // alignment * alignment


def row_counts(rows: int, k: int) -> list[int]:
    blocks = up(rows, 8) // 8
    count = min(k, blocks)
    counts = [8 * (blocks // count + 1)] * (blocks % count) + [8 * (blocks // count)] * (count - blocks % count)
    return [*counts[:-1], rows - sum(counts[:-1])]


def codes_of(packed: bytes, count: int) -> list[int]:
    codes = []
    for begin in range(0, count, 64):
        size = min(64, count - begin)
        q = 16 if size == 64 else up(size, 4) // 4
        codes += [packed[begin // 4 + i % q] >> 2 * (i // q) & 3 for i in range(size)]
    return codes


def table_of(first: int, growth: int) -> list[int]:
    table = [first, first + 1, first + 2]
    for level in (2, 3, 4, 5):
        u = growth >> 2 * (level - 2) & 3
        top, bottom = max(table), min(table)
        table += [top + 1 + i for i in range(u)] + [bottom - 1 - i for i in range(3 - u)]
    return [exponent % 256 for exponent in (*table, min(table) - 1)]


def decompress_cascade(chunk: bytes, count: int) -> bytes:
    magic, weights, cols, block_rows = struct.unpack_from("<4sIII", chunk)
    assert (magic, weights) == (b"ZMC1", count)
    rows = [min(cols, count - begin) for begin in range(0, count, cols)]
    blocks = [rows[begin : begin + block_rows] for begin in range(0, len(rows), block_rows)]
    plane, begin = bytearray(), 16 + 16 * len(blocks)
    for index, block in enumerate(blocks):
        end, *counts, exceptions, kind, zero = struct.unpack_from("<I4HHBB", chunk, 16 + 16 * index)
        payload, begin = chunk[begin:end], end
        assert zero == 0
        if kind == 0:
            plane += payload
            continue
        tables, payload = payload[: (cut := 16 if kind == 1 else 2 * len(block))], payload[cut:]
        positions, payload = struct.unpack_from(f"<{exceptions}H", payload), payload[2 * exceptions :]
        exponents, payload = payload[:exceptions], payload[exceptions:]
        ranks: list[int] = []
        for level, codes in zip((5, 4, 3, 2, 1), (*reversed(counts), sum(up(row, 64) for row in block)), strict=True):
            size = up(codes, 4) // 4
            deeper = iter(ranks if level < 5 else [15] * codes)
            ranks = [3 * level - 3 + code if code < 3 else next(deeper) for code in codes_of(payload[:size], codes)]
            payload = payload[size:]
        assert payload == b""
        of_position = dict(zip(positions, exponents, strict=True))
        for i, row in enumerate(block):
            table = tables if kind == 1 else table_of(*tables[2 * i : 2 * i + 2])
            begin_of_row = i * up(cols, 64)
            for position in range(begin_of_row, begin_of_row + row):
                plane.append(of_position.get(position, table[ranks[position]]))
    assert begin == len(chunk)
    return bytes(plane)


def codewords_of(lengths: dict[int, int]) -> dict[str, int]:
    codewords: dict[str, int] = {}
    codeword = -1
    width = 0
    for symbol in sorted(lengths, key=lambda symbol: (lengths[symbol], symbol)):
        codeword = codeword + 1 << lengths[symbol] - width
        width = lengths[symbol]
        codewords[f"{codeword:0{width}b}"] = symbol
    return codewords


def decompress_huffman(chunk: bytes, count: int) -> bytes:
    magic, weights, cols, kind = struct.unpack_from("<4sIII", chunk)
    assert (magic, weights) == (b"ZMH1", count)
    if kind < 2:
        return chunk[16:] if kind == 0 else chunk[16:] * count
    first, last = chunk[16:18]
    range_size = last - first + 1
    nibbles = [half for byte in chunk[18 : 18 + up(range_size, 2) // 2] for half in (byte & 15, byte >> 4)]
    symbol_of = codewords_of({first + i: length for i, length in enumerate(nibbles) if length})
    at = 18 + up(range_size, 2) // 2
    bases = chunk[at : (at := at + (up(count, cols) // cols if cols else 0))]
    blocks = [min(65536, count - begin) for begin in range(0, count, 65536)]
    sizes = struct.unpack_from(f"<{6 * len(blocks)}H", chunk, at)
    at += 12 * len(blocks)
    symbols: list[int] = []
    for stream, size in enumerate(sizes):
        m, i = blocks[stream // 6], stream % 6
        q = up(m, 6) // 6
        backwards: list[int] = []
        codeword = ""
        for bit in (byte >> shift & 1 for byte in chunk[at : at + size] for shift in range(8)):
            codeword += str(bit)
            if codeword in symbol_of and len(backwards) < min(m, (i + 1) * q) - min(m, i * q):
                backwards.append(symbol_of[codeword])
                codeword = ""
        assert len(codeword) < 8 and "1" not in codeword
        symbols += reversed(backwards)
        at += size
    assert chunk[at:] == bytes(8)
    return bytes((symbol + bases[i // cols]) % 256 if cols else symbol for i, symbol in enumerate(symbols))


def decompress_lz4(chunk: bytes, count: int) -> bytes:
    assert struct.unpack_from("<I", chunk) == (count,)
    plane, at = bytearray(), 4

    def number(nibble: int) -> int:
        nonlocal at
        value = nibble
        while nibble == 15:
            value += chunk[at]
            at += 1
            if chunk[at - 1] != 255:
                break
        return value

    while True:
        token = chunk[at]
        at += 1
        literals = number(token >> 4)
        plane += chunk[at : at + literals]
        at += literals
        if at == len(chunk):
            return bytes(plane)
        (distance,) = struct.unpack_from("<H", chunk, at)
        at += 2
        for _ in range(4 + number(token & 15)):
            plane.append(plane[-distance])


DECOMPRESS: dict[str, Callable[[bytes, int], bytes]] = {
    "raw": lambda chunk, count: chunk,
    "zstd": lambda chunk, count: zstandard.ZstdDecompressor().decompress(chunk),
    "cascade": decompress_cascade,
    "huffman": decompress_huffman,
    "lz4hc": decompress_lz4,
}


def recover(store: Path, manifest: dict[str, Any], layer: int, expert: int) -> list[bytes]:
    entry = manifest["experts"][layer][expert]
    tensors = manifest["layers"][layer]["tensors"]
    content = (store / manifest["files"][entry["file"]]["name"]).read_bytes()[entry["offset"] :]
    position = 0
    planes = []
    for tensor, sizes, sums in zip(tensors, entry["e"], entry["e_xxh3"], strict=True):
        plane = b""
        for rows, size, checksum in zip(
            row_counts(tensor["rows"], manifest["e_chunks_per_tensor"]), sizes, sums, strict=True
        ):
            position = up(position, 64)
            chunk = content[position : position + size]
            assert xxhash.xxh3_64_hexdigest(chunk) == checksum
            chunk = DECOMPRESS[manifest["codec"]["name"]](chunk, rows * tensor["cols"])
            assert len(chunk) == rows * tensor["cols"]
            plane += chunk
            position += size
        end = up(position + 128, 4096)
        assert content[position:end] == bytes(end - position)
        position = end
        planes.append(plane)
    recovered = []
    for tensor, e_plane, sm_xxh3, tensor_xxh3 in zip(
        tensors, planes, entry["sm_xxh3"], entry["tensor_xxh3"], strict=True
    ):
        sm_plane = content[position : position + tensor["rows"] * tensor["cols"]]
        assert xxhash.xxh3_64_hexdigest(sm_plane) == sm_xxh3
        position = up(position + len(sm_plane), 4096)
        values = [(sm & 0x80) << 8 | e << 7 | sm & 0x7F for sm, e in zip(sm_plane, e_plane, strict=True)]
        bf16 = b"".join(value.to_bytes(2, "little") for value in values)
        assert xxhash.xxh3_64_hexdigest(bf16) == tensor_xxh3
        recovered.append(bf16)
    return recovered


@pytest.mark.parametrize("name", STORES)
def test_the_format_document_is_enough_to_read_a_store(name: str) -> None:
    manifest = json.loads((GOLDEN / name / "manifest.json").read_bytes())
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    assert xxhash.xxh3_64_hexdigest(canonical) == manifest["digest"]
    for entry in manifest["dense"] + manifest["model_files"]:
        content = (GOLDEN / name / entry["name"]).read_bytes()
        assert (len(content), xxhash.xxh3_64_hexdigest(content)) == (entry["bytes"], entry["xxh3"])
    for expert in range(EXPERTS):
        expected = [tensor.path.read_bytes() for tensor in golden_tensors(expert)]
        assert recover(GOLDEN / name, manifest, 0, expert) == expected
