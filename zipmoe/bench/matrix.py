"""Matrices to measure codecs on, with their planes and the entropy of the exponents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zipmoe.kernels.planes import split_planes
from zipmoe.store.format.layout import e_chunk_rows

_CACHE_LINE_BYTES = 64


def new_bytes(count: int) -> memoryview:
    """Allocates writable zero bytes that begin on a cache line, as slots do.

    All pages are written here, because the first write to a page is slow and would be part of a measurement.
    """
    room = np.full(count + _CACHE_LINE_BYTES, 0, np.uint8)  # `np.zeros` leaves the pages to the first write
    begin = -room.ctypes.data % _CACHE_LINE_BYTES
    return room[begin : begin + count].data


@dataclass(frozen=True)
class Matrix:
    """A bf16 matrix, with the weights as `2 * rows * cols` little-endian bytes."""

    rows: int
    cols: int
    bf16: memoryview

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.bf16.nbytes

    @cached_property
    def planes(self) -> tuple[memoryview, memoryview]:
        """The SM plane and the exponent plane, one byte a weight each."""
        sm, e = new_bytes(self.rows * self.cols), new_bytes(self.rows * self.cols)
        split_planes(self.bf16, sm, e)
        return sm, e

    def e_chunks(self, count: int) -> list[slice]:
        """Returns the range of weights of each E-chunk, cut as by the packer."""
        ends = np.cumsum(e_chunk_rows(self.rows, count)) * self.cols
        return [slice(int(begin), int(end)) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]

    @cached_property
    def exponent_bits(self) -> float:
        """Shannon entropy of the exponent plane, in bits a weight."""
        counts = np.bincount(np.frombuffer(self.planes[1], np.uint8), minlength=256)
        shares = counts[counts > 0] / counts.sum()
        return -math.fsum(shares * np.log2(shares))


@dataclass(frozen=True)
class MatrixSample:
    """Matrices of the same kind or origin."""

    name: str
    matrices: tuple[Matrix, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def limit(self) -> float:
        """Smallest ratio that a code of single exponents can reach: (8 + H) / 16, averaged over the weights."""
        return sum((8 + matrix.exponent_bits) / 16 * matrix.nbytes for matrix in self.matrices) / self.nbytes
