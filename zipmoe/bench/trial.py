"""Jobs to time for a codec on a sample: compression and recovery of all chunks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from zipmoe.bench.matrix import MatrixSample, new_bytes
from zipmoe.bench.timed_threads import Job
from zipmoe.codec.base import Codec
from zipmoe.kernels.planes import split_planes

_UNWRITTEN = 0xA5
"""Value of output bytes before the jobs run, so that a byte that a job leaves out is noticed."""


@dataclass(frozen=True)
class Piece:
    """Memory of one E-chunk: bf16 weights, both planes, and output of the recovery."""

    cols: int
    bf16: memoryview
    sm: memoryview
    e: memoryview
    out: memoryview


class ChunkedSample:
    """A sample cut into a piece for each E-chunk, with output memory for the recovered weights."""

    def __init__(self, sample: MatrixSample, e_chunks: int) -> None:
        """Cuts every matrix into at most `e_chunks` pieces, as the packer does."""
        self.sample = sample
        self.outs = [new_bytes(matrix.nbytes) for matrix in sample.matrices]
        self.pieces: list[Piece] = []
        self.first_matrix_pieces = 0
        for matrix, out in zip(sample.matrices, self.outs, strict=True):
            sm, e = matrix.planes
            for part in matrix.e_chunks(e_chunks):
                pairs = slice(2 * part.start, 2 * part.stop)
                self.pieces.append(Piece(matrix.cols, matrix.bf16[pairs], sm[part], e[part], out[pairs]))
            self.first_matrix_pieces = self.first_matrix_pieces or len(self.pieces)

    def is_exact(self, jobs: list[Job]) -> bool:
        """Runs the jobs and returns whether the outputs equal every byte of every matrix."""
        for out in self.outs:
            np.frombuffer(out, np.uint8)[:] = _UNWRITTEN
        for job in jobs:
            job()
        return all(
            np.array_equal(np.frombuffer(out, np.uint8), np.frombuffer(matrix.bf16, np.uint8))
            for out, matrix in zip(self.outs, self.sample.matrices, strict=True)
        )


@dataclass(frozen=True)
class Trial:
    """Jobs to time for a codec: `recover_jobs` recover the whole sample, `encode_jobs` compress its first matrix.

    `ratio` is the number of stored bytes divided by the number of bf16 bytes.
    """

    ratio: float
    recover_jobs: list[Job]
    encode_jobs: list[Job]


def codec_trial(chunked: ChunkedSample, codec: Codec) -> Trial:
    """Compresses the whole sample and creates the jobs of a codec."""
    chunks = [codec.compress(piece.e, piece.cols) for piece in chunked.pieces]
    stored = sum(map(len, chunks)) + chunked.sample.nbytes // 2
    recover: list[Job] = [
        partial(codec.recover, chunk, piece.sm, piece.out) for chunk, piece in zip(chunks, chunked.pieces, strict=True)
    ]
    encode: list[Job] = [_encode(codec, piece) for piece in chunked.pieces[: chunked.first_matrix_pieces]]
    return Trial(stored / chunked.sample.nbytes, recover, encode)


def memcpy_trial(chunked: ChunkedSample) -> Trial:
    """Creates jobs that copy the weights to the output memory."""

    def copy(piece: Piece) -> Job:
        # ctypes calls memmove of the C library without the GIL; assignment to a memoryview would hold the GIL.
        return partial(ctypes.memmove, _address(piece.out), _address(piece.bf16), piece.bf16.nbytes)

    copies = [copy(piece) for piece in chunked.pieces]
    return Trial(1.0, copies, copies[: chunked.first_matrix_pieces])


def _encode(codec: Codec, piece: Piece) -> Callable[[], object]:
    sm, e = new_bytes(piece.sm.nbytes), new_bytes(piece.e.nbytes)

    def encode() -> bytes:
        split_planes(piece.bf16, sm, e)
        return codec.compress(e, piece.cols)

    return encode


def _address(view: memoryview) -> int:
    """Returns the address of bytes that the caller keeps alive."""
    return np.frombuffer(view, np.uint8).ctypes.data
