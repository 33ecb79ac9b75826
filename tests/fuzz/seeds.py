"""Writes the seeds of the corpus: one small chunk and one plane for each way in which a codec can store a block.

    python -m tests.fuzz.seeds

What libFuzzer finds from there is added by `scripts/fuzz.sh keep`. Both stay when a codec changes: an old chunk is
hostile enough.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.fuzz.target import CODECS, CORPUS, chunk_input, form_input, fused_input, plane_input, weights_input
from tests.kernels import linear_twin
from tests.kernels.forms import nibble_twin, tile_twin
from zipmoe.codec.registry import create_codec


def planes() -> Iterator[tuple[bytes, int]]:
    """Exponent planes with their columns."""
    generator = np.random.default_rng(1)
    normal = np.log2(np.abs(generator.standard_normal(4096)) + 1e-9)
    exponents = np.clip(np.floor(normal) + 121, 0, 255).astype(np.uint8)
    for rows, cols in ((1, 1), (1, 63), (1, 64), (1, 65), (3, 40), (8, 64), (9, 64), (16, 40), (17, 72), (20, 200)):
        yield exponents[: rows * cols].tobytes(), cols
    by_row = (exponents[:1280].reshape(20, 64) + np.arange(20, dtype=np.uint8)[:, None] * 3).astype(np.uint8)
    yield by_row.tobytes(), 64
    yield b"", 64
    yield bytes(640), 64
    yield bytes([120, 7] * 320), 64
    yield generator.integers(0, 256, 640, np.uint8).tobytes(), 64
    yield generator.integers(100, 132, 1280, np.uint8).tobytes(), 64
    rare = bytearray(exponents[:1280].tobytes())
    rare[::97] = bytes(range(200, 200 + len(rare[::97])))
    yield bytes(rare), 64


def endless_escapes() -> bytes:
    """A chunk of the largest block whose every code on every level is an escape: far more than there are ranks for."""
    rows, cols = 64, 1024
    plane = np.tile(np.arange(100, 116, dtype=np.uint8), rows * cols // 16)
    chunk = bytearray(create_codec("cascade", {"block_rows": rows}).compress(plane.data, cols))
    payload = 16 + 16 + 16  # behind the header, the only block's entry and its table
    chunk[payload:] = b"\xff" * (len(chunk) - payload)
    return chunk_input("cascade", bytes(chunk), rows * cols)


def seeds() -> Iterator[bytes]:
    """Every plane, what each codec makes of it, and a linear with the cascade's chunks for weights."""
    for name in CODECS:
        codec = create_codec(name)
        for index, (plane, cols) in enumerate(planes()):
            at_page_end = index % 2 == 1
            if plane:
                yield chunk_input(name, codec.compress(plane, cols), len(plane), at_page_end=at_page_end)
            yield plane_input(name, plane, cols, 1 + index % 9, at_page_end=at_page_end)
    yield endless_escapes()
    cascade = create_codec("cascade", {"block_rows": 4})
    for index, (plane, cols) in enumerate(planes()):
        if plane:
            chunk = cascade.compress(plane, cols)
            yield fused_input(
                chunk, len(plane) // cols, cols, order=index % 2, m=1 + index * 7 % 20, at_page_end=index % 3 == 0
            )


def matrices() -> Iterator[linear_twin.Bf16]:
    """Small matrices whose blocks are coded, with and without exceptions, or raw."""
    generator = np.random.default_rng(2)
    for rows, inputs in ((1, 1), (5, 64), (32, 30), (33, 33), (5, 514), (2, 1026)):
        plain = generator.standard_normal((rows, inputs)) * 0.02
        rare = plain * np.where(generator.random((rows, inputs)) < 0.01, 2.0**-40, 1)
        for weights in (plain, rare, plain**5):
            yield linear_twin.round_to_bf16(weights.astype(np.float32))
        yield generator.integers(0, 1 << 16, (rows, inputs)).astype(np.uint16)


def form_seeds() -> Iterator[bytes]:
    """Each matrix, and its in-memory forms."""
    for form, twin in (("tile", tile_twin), ("nibble", nibble_twin)):
        for index, matrix in enumerate(matrices()):
            at_page_end = index % 2 == 1
            made, m = twin.encode(matrix), 1 + index * 7 % 20
            yield form_input(form, made, *matrix.shape, m=m, at_page_end=at_page_end)
            if index % 2 == 0:
                yield weights_input(form, matrix.tobytes()[:4096], *matrix.shape, at_page_end=index % 4 == 0)


def main() -> None:
    """Writes each seed under the name that libFuzzer would give it."""
    CORPUS.mkdir(exist_ok=True)
    for seed in (*seeds(), *form_seeds()):
        Path(CORPUS / hashlib.sha1(seed).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main()
