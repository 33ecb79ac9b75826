"""The readable twin of the native interpreter: replays entries of a recording through torch, on other memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from zipmoe.model.attention.ragged_attention import RaggedPass
from zipmoe.model.program.memory import Memory
from zipmoe.model.program.tape import Entry, tensors_in


def replay_entry(entry: Entry, memory: Memory, cache: RaggedPass | None = None, recorded: Any = None) -> None:
    """Computes an entry again: reads its inputs from `memory`, and writes its results there.

    Args:
        entry: the entry.
        memory: the content of the pass so far.
        cache: the cache of the replayed pass; needed for attention and for layers.
        recorded: the cache of the recording, in whose place `cache` is handed down.
    """
    if entry.value is not None:
        memory.view(entry.outputs[0]).copy_(entry.value)
        return

    def ours(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return memory.view(leaf)
        return cache if recorded is not None and leaf is recorded else leaf

    args, kwargs = tree_map(ours, (entry.args, entry.kwargs))
    result = entry.call(*args, **kwargs)
    if entry.mutates:
        return
    for place, computed in zip(entry.outputs, tensors_in(result), strict=True):
        memory.view(place).copy_(computed)
