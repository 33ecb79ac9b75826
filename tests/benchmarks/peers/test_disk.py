"""What is measured of the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.peers.disk import PAGE, evict, probe, read_bytes, resident_pages
from zipmoe.errors import Unavailable


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(bytes(64 * PAGE))
    return path


def test_an_evicted_file_is_not_in_the_page_cache(file: Path) -> None:
    assert resident_pages(file) == 64
    if evict([file]):
        pytest.skip(f"{file} is on a file system that lives in memory")
    assert resident_pages(file) == 0


def test_the_disk_has_a_bandwidth(file: Path) -> None:
    try:
        assert probe([file]) > 0
    except Unavailable as refusal:
        pytest.skip(refusal.message)


def test_a_file_of_less_than_a_page_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"x")
    with pytest.raises(Unavailable, match="4096"):
        probe([tmp_path / "small"])


def test_a_process_that_has_ended_has_read_nothing() -> None:
    assert read_bytes([os.getpid()]) >= 0
    assert read_bytes([2**22 + 1]) == 0
