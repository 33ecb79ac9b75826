"""Converts the progress of packing and verifying for the progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zipmoe.cli.progress_bar import ProgressStep

if TYPE_CHECKING:
    from zipmoe.store.pack.progress import Progress


def step_of(progress: Progress) -> ProgressStep:
    """Converts a progress report of packing or verifying into a step of the progress bar."""
    return ProgressStep(
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        bytes_per_s=progress.bytes_per_s,
        remaining_s=progress.remaining_s,
        note=f"{progress.done_experts}/{progress.total_experts} experts",
    )
