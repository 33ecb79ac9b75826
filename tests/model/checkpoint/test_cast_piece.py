"""Casts of pieces, beside torch's cast of the whole and beside integer arithmetic."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.model.hub import bytes_of, read
from zipmoe.model.checkpoint.cast_piece import CastPiece
from zipmoe.model.raw_tensor import DTYPES
from zipmoe.store.pack.pieces import PieceReader
from zipmoe.store.pack.source import ByteRange

OFFSET = 6  # no multiple of the size of an fp32 number


def fp32_patterns(count: int) -> np.ndarray:
    """Random bits, with every kind of number whose rounding is a case of its own in front."""
    numbers = np.random.default_rng(3).integers(0, 1 << 32, count, dtype=np.uint32)
    ties = (np.arange(512, dtype=np.uint32) << 16 | 0x3F007FFF) + np.arange(3, dtype=np.uint32)[:, None]
    special = [
        0,
        1 << 31,
        0x7F800000,
        0xFF800000,
        0x7F7FFFFF,
        0x7F7F8000,
        0xFF7F7FFF,
        0x00000001,
        0x807FFFFF,
        0x00008000,
    ]
    numbers[: 3 * 512] = ties.ravel()
    numbers[3 * 512 : 3 * 512 + len(special)] = special
    return numbers


def place(path: Path, numbers: np.ndarray) -> ByteRange:
    path.write_bytes(b"\xaa" * OFFSET + numbers.tobytes() + b"\xbb" * 9)
    return ByteRange(path, OFFSET, numbers.nbytes)


def test_fp32_is_rounded_to_the_nearest_even_bf16(tmp_path: Path) -> None:
    bits = fp32_patterns(300_001)  # more than one read, and a rest
    piece = CastPiece(place(tmp_path / "shard", bits), "F32")
    found = np.frombuffer(read((piece,)), np.uint16)
    wide = bits.astype(np.uint64)
    rounded = ((wide + 0x7FFF + (wide >> 16 & 1)) >> 16).astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    assert nan.any()
    assert np.array_equal(found[~nan], rounded[~nan])
    assert ((found[nan] & 0x7FFF) > 0x7F80).all()
    assert found.tobytes() == bytes_of(torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_every_fp16_number_is_cast_as_torch_casts_it(tmp_path: Path, dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    piece = CastPiece(place(tmp_path / "shard", bits), "F16", dtype)
    assert piece.nbytes == bits.size * DTYPES[dtype].itemsize
    assert read((piece,)) == bytes_of(torch.from_numpy(bits.view(np.float16)).to(DTYPES[dtype]))


def test_any_part_can_be_read(tmp_path: Path) -> None:
    bits = fp32_patterns(4000)
    piece = CastPiece(place(tmp_path / "shard", bits), "F32")
    whole = read((piece,))
    with closing(PieceReader()) as reader:
        for begin, end in [(0, 1), (1, 2), (1, 8000), (3999, 4002), (2, 2), (7999, 8000), (0, 8000)]:
            part = bytearray(b"\xcc" * (end - begin))
            reader.read((piece, piece), memoryview(part), skip=begin)
            assert bytes(part) == whole[begin:end]
        across = bytearray(10)
        reader.read((piece, piece), memoryview(across), skip=7995)
        assert bytes(across) == whole[7995:] + whole[:5]
