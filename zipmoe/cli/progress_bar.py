"""Shows the progress of long work: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zipmoe.cli.console import err
from zipmoe.cli.size import format_size

if TYPE_CHECKING:
    from rich.console import Console

_LINE_INTERVAL_S = 10.0


@dataclass(frozen=True)
class ProgressStep:
    """Progress of the work: bytes done, total bytes, bytes a second, remaining seconds if known, and a note."""

    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    remaining_s: float | None
    note: str = ""

    @property
    def figures(self) -> str:
        """Bytes, rate, time left and note, as text."""
        left = "" if self.remaining_s is None else f"{_clock(self.remaining_s)} left"
        size = f"{format_size(self.done_bytes)} of {format_size(self.total_bytes)}"
        return "  ".join(part for part in (size, f"{format_size(self.bytes_per_s)}/s", left, self.note) if part)


@contextmanager
def progress_bar(task: str, *, quiet: bool = False) -> Iterator[Callable[[ProgressStep], None]]:
    """Shows progress on stderr while the block runs.

    Args:
        task: the work, for example `packing`.
        quiet: whether to show nothing, for callers that read JSON.

    Yields:
        A function that takes the newest step. Its call is cheap enough for every expert.
    """
    console = err()
    if quiet:
        yield lambda step: None
    elif not console.is_terminal:
        yield _Lines(task, console)
    else:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=console) as progress:
            task_id = progress.add_task(task, total=None, figures="")

            def show(step: ProgressStep) -> None:
                progress.update(task_id, completed=step.done_bytes, total=step.total_bytes, figures=step.figures)

            yield show


class _Lines:
    def __init__(self, task: str, console: Console) -> None:
        self._task = task
        self._console = console
        self._next_s = time.monotonic() + _LINE_INTERVAL_S

    def __call__(self, step: ProgressStep) -> None:
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + _LINE_INTERVAL_S
        self._console.print(f"{self._task}: {step.figures}", soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
