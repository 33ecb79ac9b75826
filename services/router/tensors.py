"""The tensor arena as torch tensors."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from zipmoe.arena.arena import ArenaView
from zipmoe.store.layout import ExpertSpec


class ArenaTensors:
    """Views of recovered experts in the mapped tensor arena: bf16, read-only, no copies.

    The mapping cannot be closed while a view is alive (numpy holds the buffer), which is what keeps a late reader from
    reading unmapped memory.
    """

    def __init__(self, view: ArenaView, specs: Sequence[ExpertSpec]) -> None:
        """Maps slots of `view`; `specs[layer]` is the layout of an expert of MoE layer `layer`."""
        self._view = view
        self._slots = [self._as_bf16(view.slot(index)) for index in range(view.slot_count)]
        self._places = [
            tuple(
                (offset // 2, tensor.rows, tensor.cols)
                for offset, tensor in zip(spec.tensor_offsets, spec.tensors, strict=True)
            )
            for spec in specs
        ]

    def expert(self, layer: int, slot: int) -> tuple[torch.Tensor, ...]:
        """The matrices of an expert of `layer` that stands in `slot`: bf16, (rows, cols) each, in manifest order."""
        flat = self._slots[slot]
        return tuple(flat[begin : begin + rows * cols].view(rows, cols) for begin, rows, cols in self._places[layer])

    def close(self) -> None:
        """Gives the mapping up; it goes away with the last view."""
        self._slots.clear()

    @staticmethod
    def _as_bf16(slot: memoryview) -> torch.Tensor:
        with warnings.catch_warnings():
            # torch warns that writes would be undefined; nothing writes, and the pages are mapped without write access
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.frombuffer(slot, dtype=np.uint8)).view(torch.bfloat16)
