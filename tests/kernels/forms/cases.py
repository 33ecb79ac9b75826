"""The in-memory forms that are tested here: each with its twin, its orders and the backends that have it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest

from tests.kernels import linear_twin
from tests.kernels.forms import nibble_twin, tile_twin
from tests.kernels.linear_twin import Bf16
from zipmoe.kernels.backends import backends
from zipmoe.kernels.linear import LinearShape, Order, lanes, linear_bf16, pairs
from zipmoe.kernels.memory_form import MemoryForm
from zipmoe.kernels.nibble import NIBBLE
from zipmoe.kernels.tile import TILE

CANARY = 0xA5


def _scaled(rng: np.random.Generator, n: int, k: int, scale: np.ndarray) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_normal((n, k)) * scale).astype(np.float32))


def _gaussian(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.full((n, 1), 0.02))


def _row_scaled(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.exp(rng.uniform(-2, 2, (n, 1))))


def _student(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_t(3, (n, k)) * 0.02).astype(np.float32))


def _pruned(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.where(rng.random((n, k)) < 0.12, 0, 0.02))


def _pruned_row_scaled(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.exp(rng.uniform(-2, 2, (n, 1))) * (rng.random((n, k)) > 0.12))


def _cubed(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return linear_twin.round_to_bf16((rng.standard_normal((n, k)) ** 3).astype(np.float32))


def _huge(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return _scaled(rng, n, k, np.full((n, 1), 2.0**100))


def _with_outliers(rng: np.random.Generator, n: int, k: int) -> Bf16:
    """A few weights of each row are far smaller than all others."""
    return _scaled(rng, n, k, np.where(rng.random((n, k)) < 0.01, 2.0**-40, 0.02))


def _random_bits(rng: np.random.Generator, n: int, k: int) -> Bf16:
    return rng.integers(0, 1 << 16, (n, k)).astype(np.uint16)


KINDS: dict[str, Callable[[np.random.Generator, int, int], Bf16]] = {
    each.__name__[1:]: each
    for each in (
        *(_gaussian, _row_scaled, _student, _pruned, _pruned_row_scaled),
        *(_cubed, _huge, _with_outliers, _random_bits),
    )
}


@dataclass(frozen=True)
class FormCase:
    """A form on a backend."""

    form: MemoryForm
    using: str | None
    twin: ModuleType
    orders: tuple[Order, ...]

    def __str__(self) -> str:
        return f"{self.form.name}-{self.using or 'default'}"

    @property
    def order(self) -> Order:
        """The order of tests that need only one."""
        return self.orders[0]

    def made(self, weight: Bf16) -> bytes:
        """A matrix in this form, made between canaries."""
        n, k = weight.shape
        memory = np.full(self.form.bound(n, k) + 128, CANARY, np.uint8)
        used = self.form.from_bf16(np.ascontiguousarray(weight), memory[64:-64], n, k, using=self.using)
        assert (memory[:64] == CANARY).all() and (memory[-64:] == CANARY).all()
        return memory[64 : 64 + used].tobytes()

    def recovered(self, matrix: bytes, n: int, k: int) -> Bf16:
        memory = np.full(n * k + 64, 0xA5A5, np.uint16)
        self.form.to_bf16(matrix, memory[32:-32], n, k, using=self.using)
        assert (memory[:32] == 0xA5A5).all() and (memory[-32:] == 0xA5A5).all()
        return memory[32:-32].reshape(n, k)

    def compute(self, x: Bf16, matrix: bytes, n: int, order: Order, bias: Bf16 | None = None, threads: int = 1) -> Bf16:
        shape = LinearShape(len(x), n, x.shape[1])
        memory = np.full(shape.m * shape.n + 64, 0xA5A5, np.uint16)
        self.form.linear(x, matrix, memory[32:-32], shape, order, bias=bias, threads=threads, using=self.using)
        assert (memory[:32] == 0xA5A5).all() and (memory[-32:] == 0xA5A5).all()
        return memory[32:-32].reshape(shape.m, shape.n)


_PAIRS = (pairs(1024), pairs(512), pairs(512, 2), pairs(96, 3), pairs(64))
TILES = FormCase(TILE, None, tile_twin, _PAIRS)
NIBBLES = tuple(FormCase(NIBBLE, using, nibble_twin, (lanes(),)) for using in backends())

needs_tiles = pytest.mark.skipif(not TILE.is_supported(), reason="tile form needs a CPU with AVX-512 VBMI2 and BF16")
every_form = pytest.mark.parametrize("case", [pytest.param(TILES, marks=needs_tiles), *NIBBLES], ids=str)
"""Every form on every backend that can have it."""

every_order = pytest.mark.parametrize(
    ("case", "order"),
    [
        *(pytest.param(TILES, order, marks=needs_tiles) for order in TILES.orders),
        *((case, order) for case in NIBBLES for order in case.orders),
    ],
    ids=str,
)


def plain(x: Bf16, weight: Bf16, order: Order, bias: Bf16 | None = None) -> Bf16:
    """The linear on bf16."""
    shape = LinearShape(len(x), *weight.shape)
    out = np.empty((shape.m, shape.n), np.uint16)
    linear_bf16(x, np.ascontiguousarray(weight), out, shape, order, bias=bias)
    return out


def same(found: Bf16, wanted: Bf16) -> bool:
    """Whether the bits are the same; one NaN is like another."""
    both_nan = np.isnan(linear_twin.widen(found)) & np.isnan(linear_twin.widen(wanted))
    return bool(((found == wanted) | both_nan).all())


@contextmanager
def memory_before_a_page() -> Iterator[memoryview]:
    """Some pages of memory that are followed by an inaccessible one."""
    size = 64 * mmap.PAGESIZE
    pages = mmap.mmap(-1, size + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + size
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert mprotect(address, mmap.PAGESIZE, 0) == 0
    yield memoryview(pages)[:size]
    assert mprotect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
