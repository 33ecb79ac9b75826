"""Views of expert matrices in the mapped arenas of a decoder and its expert store."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch

from zipmoe.arena.arena import ArenaView
from zipmoe.model.linear.packed import PackedMatrix, packed_matrices
from zipmoe.store.format.manifest import Manifest
from zipmoe.types import ExpertKey

CACHED_RECORDS = 4096
"""Manifest records that are cached; about 4 KB each."""


class ExpertViews:
    """Read-only views of experts in mapped arenas, without copies.

    A mapping stays open while a view is alive, since numpy arrays and memoryviews hold the buffer. A late reader
    therefore never reads unmapped memory.
    """

    def __init__(self, manifest: Manifest, e_view: ArenaView, sm_view: ArenaView, tensor_view: ArenaView | None):
        """Makes views of all slots of the three arenas; `tensor_view` is None without tensor slots."""
        self.tensor_view = tensor_view
        self._e_slots = [e_view.slot(index) for index in range(e_view.slot_count)]
        self._sm_slots = [sm_view.slot(index) for index in range(sm_view.slot_count)]
        count = 0 if tensor_view is None else tensor_view.slot_count
        self._tensors = [_as_bf16(tensor_view.slot(index)) for index in range(count) if tensor_view is not None]
        self._record = lru_cache(CACHED_RECORDS)(manifest.record)
        self._full: dict[int, tuple[int, tuple[torch.Tensor, ...]]] = {}
        self._packed: dict[ExpertKey, tuple[int, int, tuple[PackedMatrix, ...]]] = {}
        self._places = [
            tuple(
                (offset // 2, tensor.rows, tensor.cols)
                for offset, tensor in zip(layer.spec.tensor_offsets, layer.spec.tensors, strict=True)
            )
            for layer in manifest.layers
        ]

    def full(self, layer: int, slot: int) -> tuple[torch.Tensor, ...]:
        """Returns the matrices of an expert of `layer` in a tensor slot: bf16, (rows, cols) each, in manifest order."""
        latest, matrices = self._full.get(slot, (-1, ()))
        if latest != layer:
            flat, places = self._tensors[slot], self._places[layer]
            matrices = tuple(flat[begin : begin + rows * cols].view(rows, cols) for begin, rows, cols in places)
            self._full[slot] = (layer, matrices)
        return matrices

    def packed(self, key: ExpertKey, e_slot: int, sm_slot: int) -> tuple[PackedMatrix, ...]:
        """Returns the matrices of a PACKED expert, as chunks in an E slot and an SM slot, in manifest order."""
        e_latest, sm_latest, matrices = self._packed.get(key, (-1, -1, ()))
        if (e_latest, sm_latest) != (e_slot, sm_slot):
            matrices = packed_matrices(self._record(key), self._e_slots[e_slot], self._sm_slots[sm_slot])
            self._packed[key] = (e_slot, sm_slot, matrices)
        return matrices

    def close(self) -> None:
        """Drops all views; each mapping is closed with its last view."""
        self._full.clear()
        self._packed.clear()
        self._e_slots.clear()
        self._sm_slots.clear()
        self._tensors.clear()
        self.tensor_view = None


def _as_bf16(slot: memoryview) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns that writes would be undefined; nothing writes, and the pages are mapped without write access
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(slot, dtype=np.uint8)).view(torch.bfloat16)
