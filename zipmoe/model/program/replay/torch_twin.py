"""The readable twin of the native interpreter: replays entries of a recording through torch, on other memory."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_map

from zipmoe.model.attention.ragged_attention import RaggedPass
from zipmoe.model.program.lowering.pass_memory import PassMemory
from zipmoe.model.program.recording.tape import TapeEntry, tensors_in


class TwinOf:
    """An entry that can be computed again and again: reads its inputs from a memory, and writes its results there.

    The recorded tensors are not kept, but for constants and weights.
    """

    def __init__(self, entry: TapeEntry, memory: PassMemory, recorded: RaggedPass | None = None) -> None:
        """Finds the places of the arguments and results.

        Args:
            entry: the entry.
            memory: the content of the pass so far.
            recorded: the cache of the recording; None if no entry has one among its arguments.
        """
        self._call, self._value, self._mutates = entry.call, entry.value, entry.mutates
        self._recorded = recorded
        self._args, self._kwargs = tree_map(
            lambda leaf: memory.view(leaf) if isinstance(leaf, torch.Tensor) else leaf, (entry.args, entry.kwargs)
        )
        self._places = [memory.view(each) for each in entry.outputs]

    def compute(self, cache: RaggedPass | None = None) -> None:
        """Computes the entry.

        Args:
            cache: the cache of the replayed pass, which is handed down in the place of the recorded one; needed for
                attention and for layers.
        """
        if self._value is not None:
            self._places[0].copy_(self._value)
            return
        args, kwargs = self._args, self._kwargs
        if cache is not None:
            args, kwargs = tree_map(lambda leaf: cache if leaf is self._recorded else leaf, (args, kwargs))
        result = self._call(*args, **kwargs)
        if self._mutates:
            return
        if isinstance(result, torch.Tensor):
            self._places[0].copy_(result)
            return
        for place, computed in zip(self._places, tensors_in(result), strict=True):
            place.copy_(computed)
