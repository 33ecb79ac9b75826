"""Inputs of the fuzz target, as `decoders.cpp` reads them, and its build with the compiler at hand."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.kernels.emulated.machine import REPOSITORY, Unobtainable, compile_in, find_cmake

FUZZ = Path(__file__).parent
CORPUS = FUZZ / "corpus"
BUILD = REPOSITORY / "build" / "mutations"

CODECS = ("cascade", "huffman")
"""In the order of kCodecs."""

FORMS = ("tile", "nibble")
"""In the order of kForms."""

FUSED = 2 * len(CODECS)
SUBJECTS = FUSED + 1 + 2 * len(FORMS)
"""A decoder and an encoder for each codec, the fused linear, a matrix in each in-memory form, and its encoder."""

MOST_FEW_WEIGHTS = 1 << 12
_AT_A_PAGES_END, _MORE_WEIGHTS = 1, 0x80


def chunk_input(codec: str, chunk: bytes, count: int, *, at_page_end: bool = False) -> bytes:
    """A chunk for a decoder that is to find `count` weights in it."""
    flags = at_page_end * _AT_A_PAGES_END | (count > MOST_FEW_WEIGHTS) * _MORE_WEIGHTS
    return bytes([2 * CODECS.index(codec), flags]) + count.to_bytes(3, "little") + chunk


def plane_input(codec: str, e_plane: bytes, cols: int, block_rows: int, *, at_page_end: bool = False) -> bytes:
    """Exponents for an encoder."""
    subject = 2 * CODECS.index(codec) + 1
    return bytes([subject, at_page_end * _AT_A_PAGES_END]) + cols.to_bytes(2, "little") + bytes([block_rows]) + e_plane


def fused_input(chunk: bytes, rows: int, inputs: int, *, order: int, m: int, at_page_end: bool = False) -> bytes:
    """A chunk of `cascade` for the linear that computes with it."""
    sizes = bytes([order | m % 2 << 1, m - 1, rows - 1]) + (inputs - 1).to_bytes(2, "little")
    return bytes([FUSED, at_page_end * _AT_A_PAGES_END]) + sizes + chunk


def form_input(form: str, matrix: bytes, rows: int, inputs: int, *, m: int, at_page_end: bool = False) -> bytes:
    """A matrix in an in-memory form for the linear and the recovery."""
    sizes = bytes([m - 1 | m % 2 << 7, rows - 1]) + (inputs - 1).to_bytes(2, "little")
    subject = FUSED + 1 + 2 * FORMS.index(form)
    return bytes([subject, at_page_end * _AT_A_PAGES_END]) + sizes + matrix


def weights_input(form: str, bf16: bytes, rows: int, inputs: int, *, at_page_end: bool = False) -> bytes:
    """Weights for the encoder of an in-memory form."""
    sizes = bytes([rows - 1]) + (inputs - 1).to_bytes(2, "little")
    subject = FUSED + 2 + 2 * FORMS.index(form)
    return bytes([subject, at_page_end * _AT_A_PAGES_END]) + sizes + bf16


def build_driver() -> Path:
    """Builds what has changed of the driver, sanitizers in it and in the kernels.

    Raises:
        Unobtainable: There is no CMake, or the compiler has no sanitizers.
    """
    cmake = find_cmake()
    if cmake is None:
        raise Unobtainable("there is no cmake")
    sanitizer = subprocess.run(
        [os.environ.get("CXX", "c++"), "-fsanitize=address,undefined", "-x", "c++", "-o", "/dev/null", "-"],
        input="int main() {}",
        capture_output=True,
        text=True,
        check=False,
    )
    if sanitizer.returncode != 0:
        raise Unobtainable(f"the compiler has no sanitizers: {sanitizer.stderr.strip()}")
    compile_in(BUILD, cmake, FUZZ)
    return BUILD / "mutations"
