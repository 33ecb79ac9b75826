"""Whether the kernels have torch's bits on this machine, for tests that say more where they do."""

from __future__ import annotations

from functools import cache

from zipmoe.kernels.linear import LinearShape
from zipmoe.model.linear.linear_order import OrderTable


@cache
def kernels_have_torchs_bits() -> bool:
    """Tells machines with a known order of summation from others, such as those with AMX.

    The linears of tiny models do not tell them apart: some with few inputs have a known order everywhere.
    """
    table = OrderTable()
    return all(table.order(LinearShape(rows, 64, 512), bias=False) is not None for rows in (1, 16))
