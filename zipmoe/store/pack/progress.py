"""How far a long run over a store has come, for whoever draws a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of a run. Bytes are those of the tensors (bf16, dense), not of the compressed files.

    `resumed_bytes` of the `done_bytes` were done by an earlier run; `written_bytes` have gone to disk in this one.
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
        """Tensor bytes a second in this run, on average; 0 before the first."""
        return (self.done_bytes - self.resumed_bytes) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def remaining_s(self) -> float | None:
        """Seconds to go at that rate; None while there is no rate."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s > 0 else None


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Takes no notice."""


class Meter:
    """Adds up what is done and tells the callback, always from the thread that calls `advance`."""

    def __init__(self, total_bytes: int, total_experts: int, callback: ProgressCallback) -> None:
        self._callback = callback
        self._total_bytes = total_bytes
        self._total_experts = total_experts
        self._start_s = time.monotonic()
        self._done_bytes = self._resumed_bytes = self._written_bytes = self._done_experts = 0

    def advance(self, done_bytes: int, *, experts: int = 0, written_bytes: int = 0, resumed: bool = False) -> None:
        """Counts one more piece of work; whatever the callback raises ends the run."""
        self._done_bytes += done_bytes
        self._done_experts += experts
        self._written_bytes += written_bytes
        self._resumed_bytes += done_bytes if resumed else 0
        self._callback(self.progress())

    def progress(self) -> Progress:
        """This moment."""
        return Progress(
            done_bytes=self._done_bytes,
            total_bytes=self._total_bytes,
            resumed_bytes=self._resumed_bytes,
            written_bytes=self._written_bytes,
            done_experts=self._done_experts,
            total_experts=self._total_experts,
            elapsed_s=time.monotonic() - self._start_s,
        )
