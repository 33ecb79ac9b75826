"""Progress of a long run over a store (pack or verify), for progress bars."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a run at one moment. Bytes are bytes of tensors (bf16, dense), not of compressed files.

    `resumed_bytes` are the part of `done_bytes` that an earlier run has done. `written_bytes` are the bytes that this
    run has written to disk.
    """

    done_bytes: int
    total_bytes: int
    resumed_bytes: int
    written_bytes: int
    done_experts: int
    total_experts: int
    elapsed_s: float

    @property
    def bytes_per_s(self) -> float:
        """Average tensor bytes a second of this run; 0 before any time has passed."""
        return (self.done_bytes - self.resumed_bytes) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Remaining seconds at the average rate; None while the rate is 0."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s > 0 else None


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Ignores the progress: the default callback."""


class Meter:
    """Adds up completed work and calls the progress callback in the thread that calls `advance`."""

    def __init__(self, total_bytes: int, total_experts: int, callback: ProgressCallback) -> None:
        self._callback = callback
        self._total_bytes = total_bytes
        self._total_experts = total_experts
        self._start_s = time.monotonic()
        self._done_bytes = self._resumed_bytes = self._written_bytes = self._done_experts = 0

    def advance(self, done_bytes: int, *, experts: int = 0, written_bytes: int = 0, resumed: bool = False) -> None:
        """Counts one more piece of work and calls the callback. An exception of the callback ends the run."""
        self._done_bytes += done_bytes
        self._done_experts += experts
        self._written_bytes += written_bytes
        self._resumed_bytes += done_bytes if resumed else 0
        self._callback(self.progress())

    def progress(self) -> Progress:
        """Returns the progress at this moment."""
        return Progress(
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            resumed_bytes=self._resumed_bytes,
            written_bytes=self._written_bytes,
            done_experts=self._done_experts,
            total_experts=self._total_experts,
            elapsed_s=time.monotonic() - self._start_s,
        )
