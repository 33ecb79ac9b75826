"""Nibble form: weights in memory of 12 bits each, for CPUs whose products have the order `lanes`.

`native/nibble/FORMAT.md` defines the form. Every backend has it: AVX2 and NEON have kernels of their own, the scalar
one is readable and slow. A product has the bits of the order `lanes`.
"""

from __future__ import annotations

from zipmoe.kernels.linear import LANES
from zipmoe.kernels.memory_form import MemoryForm

NIBBLE = MemoryForm("nibble", LANES)
