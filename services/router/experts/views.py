"""Views of expert matrices in the mapped arenas of a decoder and its expert store."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch

from zipmoe.arena.arena import ArenaView
from zipmoe.arena.tensor_form import BF16, TensorForm, TensorRoom, tensor_rooms
from zipmoe.model.linear.compressed import CompressedMatrix, named_form
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

    def __init__(
        self,
        manifest: Manifest,
        e_view: ArenaView,
        sm_view: ArenaView,
        tensor_view: ArenaView | None,
        tensor_form: TensorForm = BF16,
    ) -> None:
        """Makes views of all slots of the three arenas.

        Args:
            manifest: the store's manifest.
            e_view: the arena of E-chunks.
            sm_view: the arena of SM-chunks.
            tensor_view: the arena of recovered experts; None without tensor slots.
            tensor_form: form of recovered experts.
        """
        self.tensor_view = tensor_view
        self._e_slots = [e_view.slot(index) for index in range(e_view.slot_count)]
        self._sm_slots = [sm_view.slot(index) for index in range(sm_view.slot_count)]
        count = 0 if tensor_view is None else tensor_view.slot_count
        self._tensors = [_as_tensor(tensor_view.slot(index)) for index in range(count) if tensor_view is not None]
        self._record = lru_cache(CACHED_RECORDS)(manifest.record)
        self._full: dict[int, tuple[int, tuple[torch.Tensor | CompressedMatrix, ...]]] = {}
        self._packed: dict[ExpertKey, tuple[int, int, tuple[PackedMatrix, ...]]] = {}
        self._form = None if tensor_form == BF16 else named_form(tensor_form)
        self._rooms = [tensor_rooms(layer.spec, tensor_form) for layer in manifest.layers]

    def full(self, layer: int, slot: int) -> tuple[torch.Tensor | CompressedMatrix, ...]:
        """Returns the matrices of an expert of `layer` in a tensor slot, (rows, cols) each, in manifest order."""
        latest, matrices = self._full.get(slot, (-1, ()))
        if latest != layer:
            flat = self._tensors[slot]
            matrices = tuple(self._matrix(flat[room.begin : room.end], room) for room in self._rooms[layer])
            self._full[slot] = (layer, matrices)
        return matrices

    def _matrix(self, memory: torch.Tensor, room: TensorRoom) -> torch.Tensor | CompressedMatrix:
        if self._form is None:
            return memory.view(torch.bfloat16).view(room.rows, room.cols)
        return CompressedMatrix(self._form, (room.rows, room.cols), memory)

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


def _as_tensor(slot: memoryview) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch warns that writes would be undefined; nothing writes, and the pages are mapped without write access
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.frombuffer(slot, dtype=np.uint8))
