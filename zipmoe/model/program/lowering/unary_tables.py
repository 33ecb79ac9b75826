"""Tables of functions of one bf16 number, which torch itself fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_VECTOR = 64
"""Numbers of a multiple of this count are computed by torch's vector code alone; others have a tail."""

_SHARED = 32_768
"""From this count on torch shares numbers among threads, and each share may have a tail."""


class UnaryTables:
    """The tables of a program: 128 KiB for each function."""

    def __init__(self) -> None:
        self._tables: dict[str, tuple[torch.Tensor, bool]] = {}

    def table(
        self, name: str, call: Callable[..., Any], others: Sequence[Any], settings: dict[str, Any], numbers: int
    ) -> torch.Tensor | None:
        """Returns the table of a function for rows of some length.

        torch computes whole vectors and the numbers that are left over by different code. Where both codes differ, the
        table is right only without numbers that are left over.

        Args:
            name: ATen's name of the function.
            call: the function; its first argument is the tensor.
            others: further arguments.
            settings: keyword arguments.
            numbers: contiguous numbers that the function is called with.

        Returns:
            bf16, shape (65536,), indexed by the bits of the argument; None if no table is right.
        """
        key = f"{name} {others} {settings}"
        if key not in self._tables:
            every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
            whole = call(every.clone(), *others, **settings)
            apart = call(torch.stack([every, every], 1)[:, 0], *others, **settings).contiguous()
            same = bool(((whole.view(torch.int16) == apart.view(torch.int16)) | whole.isnan()).all())
            self._tables[key] = whole.contiguous(), same
        table, same = self._tables[key]
        return table if same or (numbers % _VECTOR == 0 and numbers < _SHARED) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for table, _ in self._tables.values())
