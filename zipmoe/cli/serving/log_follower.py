"""Copies growing log files to stderr, for `--verbose`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

_INTERVAL_S: Final = 0.2


@contextmanager
def following(paths: Sequence[Path]) -> Iterator[None]:
    """Copies the files to stderr as they grow. The last bytes follow at the end of the block."""
    ended = threading.Event()

    def follow() -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in paths]
            while not ended.wait(_INTERVAL_S):
                _copy(files)
            _copy(files)

    thread = threading.Thread(target=follow, name="follow-logs")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _copy(files: Sequence[BinaryIO]) -> None:
    for file in files:
        sys.stderr.write(file.read().decode(errors="replace"))
    sys.stderr.flush()
