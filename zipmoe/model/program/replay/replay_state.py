"""State of a replay: the frame of the native code, and the cache of the pass for steps that run stock's code."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from zipmoe.errors import InternalError
from zipmoe.kernels.program import Frame
from zipmoe.model.attention.ragged_attention import RaggedPass


class Replay:
    """What the steps of a replayed pass share.

    Attributes:
        frame: the frame of the native code.
        address: address of the frame.
        bases, parts: arrays of the frame, which experts set.
        cache: returns the cache of the pass.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.address = ctypes.addressof(frame)
        self.bases, self.parts = frame.bases, frame.parts
        self.cache: Callable[[], RaggedPass] = _no_cache


def _no_cache() -> RaggedPass:
    raise InternalError("a replay has no row yet")
