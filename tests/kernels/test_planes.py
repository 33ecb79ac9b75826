"""Every backend that this CPU has, against the torch reference and against its own bounds."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.kernels.reference import all_planes, all_weights, merged_patterns, split_patterns
from zipmoe.codec import planes_twin
from zipmoe.errors import InvalidRequest
from zipmoe.kernels import backends as kernel_backends
from zipmoe.kernels import planes as plane_kernels

LONGEST = 300
ALIGNMENTS = 64
CANARY = b"\xa5"

every_backend = pytest.mark.parametrize("backend", kernel_backends.backends())


def sample(count: int) -> tuple[bytes, bytes, bytes]:
    """SM plane, exponent plane and weights of `count` patterns spread over all 65 536."""
    weights = all_weights().view(torch.int16)[torch.arange(count) * 40503 % 65536].view(torch.bfloat16)
    sm, e = planes_twin.split_planes(weights)
    return sm.numpy().tobytes(), e.numpy().tobytes(), weights.view(torch.uint8).numpy().tobytes()


class Canvas:
    """Page-aligned memory full of canaries, in which a buffer is placed at a chosen alignment."""

    def __init__(self) -> None:
        self.pages = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.blank = CANARY * len(self.pages)

    def place(self, alignment: int, nbytes: int, content: bytes | None = None) -> memoryview:
        self.pages[:] = self.blank
        self.begin, self.end = 64 + alignment, 64 + alignment + nbytes
        if content is not None:
            self.pages[self.begin : self.end] = content[:nbytes]
        return self.pages[self.begin : self.end]

    def holds(self, content: bytes) -> bool:
        """Whether the buffer holds exactly this, and the canaries around it are alive."""
        return self.pages == self.blank[: self.begin] + content + self.blank[self.end :]


def alignments(length: int) -> Iterator[tuple[int, int, int]]:
    """Each of three buffers at every fourth alignment, the others at 0; other lengths meet the other alignments."""
    for alignment in range(length % 4, ALIGNMENTS, 4):
        yield alignment, 0, 0
        yield 0, alignment, 0
        yield 0, 0, alignment


@every_backend
def test_splitting_every_bf16_pattern_equals_the_reference(backend: str) -> None:
    weights = all_weights().view(torch.uint8).numpy()
    sm, e = bytearray(65536), bytearray(65536)
    plane_kernels.split_planes(weights, sm, e, using=backend)
    expected_sm, expected_e = split_patterns()
    assert sm == expected_sm.numpy().tobytes()
    assert e == expected_e.numpy().tobytes()


@every_backend
def test_merging_every_pair_of_bytes_equals_the_reference(backend: str) -> None:
    sm, e = (plane.numpy() for plane in all_planes())
    out = bytearray(2 * 65536)
    plane_kernels.merge_planes(sm, e, out, using=backend)
    assert out == merged_patterns().view(torch.uint8).numpy().tobytes()


@every_backend
def test_merging_is_exact_at_every_length_and_alignment_and_writes_nothing_else(backend: str) -> None:
    sm, e, weights = sample(LONGEST)
    first, second, third = Canvas(), Canvas(), Canvas()
    for n in range(LONGEST + 1):
        for a, b, c in alignments(n):
            out = third.place(c, 2 * n)
            plane_kernels.merge_planes(first.place(a, n, sm), second.place(b, n, e), out, using=backend)
            assert third.holds(weights[: 2 * n]), f"length {n}, alignments {a}, {b}, {c}"


@every_backend
def test_splitting_is_exact_at_every_length_and_alignment_and_writes_nothing_else(backend: str) -> None:
    sm, e, weights = sample(LONGEST)
    first, second, third = Canvas(), Canvas(), Canvas()
    for n in range(LONGEST + 1):
        for a, b, c in alignments(n):
            sm_out, e_out = second.place(b, n), third.place(c, n)
            plane_kernels.split_planes(first.place(a, 2 * n, weights), sm_out, e_out, using=backend)
            assert second.holds(sm[:n]), f"length {n}, alignments {a}, {b}, {c}"
            assert third.holds(e[:n]), f"length {n}, alignments {a}, {b}, {c}"


@pytest.fixture
def page_end() -> Iterator[memoryview]:
    """A page of memory that is followed by an inaccessible one."""
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    view = memoryview(pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + mmap.PAGESIZE
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(address, mmap.PAGESIZE, 0) == 0
    yield view[: mmap.PAGESIZE]
    assert mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@every_backend
def test_no_byte_behind_an_input_is_read(backend: str, page_end: memoryview) -> None:
    sm, e, weights = sample(LONGEST)
    for n in range(1, LONGEST + 1):
        tail, out = page_end[-n:], bytearray(2 * n)
        tail[:] = sm[:n]
        plane_kernels.merge_planes(tail, e[:n], out, using=backend)
        tail[:] = e[:n]
        plane_kernels.merge_planes(sm[:n], tail, out, using=backend)
        page_end[-2 * n :] = weights[: 2 * n]
        plane_kernels.split_planes(page_end[-2 * n :], out[:n], bytearray(n), using=backend)
        assert out == weights[: 2 * n]


def test_read_only_inputs_are_accepted() -> None:
    out = bytearray(2)
    plane_kernels.merge_planes(memoryview(b"\x80"), b"\xff", memoryview(out))
    assert out == b"\x80\xff"


@pytest.mark.parametrize(
    ("sm_bytes", "e_bytes", "out_bytes"), [(8, 8, 15), (8, 8, 17), (8, 7, 16), (7, 8, 16), (0, 0, 2), (8, 8, 0)]
)
def test_buffers_of_unequal_length_are_refused_before_anything_is_written(
    sm_bytes: int, e_bytes: int, out_bytes: int
) -> None:
    out = bytearray(CANARY * out_bytes)
    with pytest.raises(InvalidRequest, match=f"sm has {sm_bytes} bytes, e {e_bytes} and bf16 {out_bytes}"):
        plane_kernels.merge_planes(bytes(sm_bytes), bytes(e_bytes), out)
    with pytest.raises(InvalidRequest, match=f"sm has {sm_bytes} bytes"):
        plane_kernels.split_planes(out, bytearray(sm_bytes), bytearray(e_bytes))
    assert out == CANARY * out_bytes


def test_a_read_only_output_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="out is not a writable contiguous buffer"):
        plane_kernels.merge_planes(b"a", b"b", b"cd")
    with pytest.raises(InvalidRequest, match="e is not a writable contiguous buffer"):
        plane_kernels.split_planes(b"ab", bytearray(1), memoryview(b"c"))


def test_a_strided_buffer_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="sm is not a contiguous buffer"):
        plane_kernels.merge_planes(memoryview(b"abcd")[::2], b"ab", bytearray(4))


def test_what_is_not_a_buffer_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="e is not a contiguous buffer"):
        plane_kernels.merge_planes(b"a", "b", bytearray(2))  # type: ignore[arg-type]


def test_an_output_that_overlaps_an_input_is_refused() -> None:
    memory = memoryview(bytearray(64))
    with pytest.raises(InvalidRequest, match="overlap"):
        plane_kernels.merge_planes(memory[:16], bytes(16), memory[15:47])
    with pytest.raises(InvalidRequest, match="overlap"):
        plane_kernels.merge_planes(bytes(16), memory[46:62], memory[15:47])
    with pytest.raises(InvalidRequest, match="overlap"):
        plane_kernels.split_planes(bytes(32), memory[:16], memory[15:31])
    plane_kernels.merge_planes(memory[:16], memory[48:], memory[16:48])


def test_a_released_buffer_can_be_resized_again() -> None:
    out = bytearray(2)
    plane_kernels.merge_planes(b"a", b"b", out)
    out.append(0)  # raises BufferError while any export of `out` is alive


def test_many_threads_share_the_kernels() -> None:
    sm, e, weights = sample(4096)

    def merge_often(_: int) -> bool:
        out = bytearray(len(weights))
        for _ in range(50):
            plane_kernels.merge_planes(sm, e, out)
        return out == weights

    with ThreadPoolExecutor(4, thread_name_prefix="merge") as pool:
        assert all(pool.map(merge_often, range(8)))


def test_the_scalar_backend_is_always_there_and_last() -> None:
    assert kernel_backends.backends()[-1] == "scalar"


def test_an_unknown_backend_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"using names kernel backend 'sse9', this machine has .*scalar"):
        plane_kernels.merge_planes(b"a", b"b", bytearray(2), using="sse9")


def backend_of_a_process(choice: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from zipmoe.kernels.backends import backend; print(backend())"],
        env={**os.environ, "ZIPMOE_KERNELS": choice},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.own_process
def test_the_environment_chooses_the_backend() -> None:
    assert backend_of_a_process("scalar").stdout.strip() == "scalar"
    assert backend_of_a_process("").stdout.strip() == kernel_backends.backends()[0]


def test_an_unknown_backend_in_the_environment_is_refused_by_name() -> None:
    assert "ZIPMOE_KERNELS names kernel backend 'sse9'" in backend_of_a_process("sse9").stderr
