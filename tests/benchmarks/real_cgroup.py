"""A memory cgroup of this machine, or a skip that says why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from benchmarks.memory_cgroup import MemoryCgroup, memory_cgroup
from zipmoe.errors import Unavailable


@contextmanager
def real_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """Makes a cgroup for the block, or skips the test."""
    with ExitStack() as stack:
        try:
            cgroup = stack.enter_context(memory_cgroup(limit_bytes))
        except Unavailable as refusal:
            pytest.skip(f"no memory cgroup here: {refusal.message}")
        yield cgroup
