"""Tile form: weights in memory from which products of few rows are as fast as memory, for CPUs with AVX-512.

`native/tile/FORMAT.md` defines the form. It needs AVX-512 VBMI2 and BF16. A product has the bits of the order `pairs`.
"""

from __future__ import annotations

from zipmoe.kernels.linear import PAIRS
from zipmoe.kernels.memory_form import MemoryForm

TILE = MemoryForm("tile", PAIRS)
