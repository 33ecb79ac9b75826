"""Compares each native operation of a recording with its twin on this machine, byte for byte."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from zipmoe.kernels.program import Frame, NativeSegment, Operation
from zipmoe.model.attention.ragged_attention import RaggedPass
from zipmoe.model.program.lowering.pass_memory import PassMemory
from zipmoe.model.program.recording.record import Recording
from zipmoe.model.program.recording.tape import TapeEntry
from zipmoe.model.program.replay.torch_twin import TwinOf

DIFFERS = "its bits differ from torch's"


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compares the bytes of two tensors of equal shape and dtype."""
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.contiguous().reshape(-1)
    return (torch.view_as_real(whole).reshape(-1) if whole.is_complex() else whole).view(torch.uint8)


class Lockstep:
    """Replays entries natively and by their twins side by side, each on memory of its own with equal content."""

    def __init__(
        self, memory: PassMemory, frame: Frame, recording: Recording | None = None, cache: RaggedPass | None = None
    ) -> None:
        """Begins with a copy of `memory` for the twins.

        Args:
            memory: the memory that native operations have the addresses of.
            frame: their frame.
            recording: the recorded pass; None if no entry needs a cache.
            cache: the cache of the replayed pass.
        """
        self._native, self._twin = memory, memory.twin()
        self._frame = ctypes.addressof(frame)
        self._recorded = None if recording is None else recording.cache
        self._cache = cache
        self.different: list[TapeEntry] = []

    def compute(self, entry: TapeEntry, operations: Sequence[Operation] | None) -> None:
        """Computes an entry by its twin and, if there are operations, natively. Both memories get the twin's result."""
        cache = self._cache if entry.subject is not None else None
        TwinOf(entry, self._twin, self._recorded).compute(cache)
        wanted = [self._twin.view(each) for each in entry.outputs]
        found = [self._native.view(each) for each in entry.outputs]
        if operations is not None:
            NativeSegment(operations).run(self._frame)
            if not all(same_bytes(*pair) for pair in zip(found, wanted, strict=True)):
                self.different.append(entry)
        for ours, theirs in zip(found, wanted, strict=True):
            ours.copy_(theirs)
