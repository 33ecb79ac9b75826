"""A full disk ends a pack with numbers, leaves nothing that poses as a store, and loses no work."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import small_disk as disk
from tests.store.conftest import Packed
from tests.store.sources import tree
from zipmoe.errors import NotFound, ResourceExhausted
from zipmoe.store.format.manifest import read_manifest
from zipmoe.store.pack.progress import Progress
from zipmoe.store.pack.writer import PackOptions, pack_store

ROOT = Path(__file__).parents[3]


def test_a_disk_that_is_too_small_is_refused_at_the_start_with_numbers(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(ResourceExhausted, match=r"needs about \d{6} bytes in .*, but 50000 are free"):
        pack_store(packed.source, tmp_path / "store")
    assert set(tree(tmp_path / "store")) == {"packing.journal"}


def test_the_estimate_is_not_far_from_the_truth(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_bytes = sum(len(content) for content in tree(packed.store).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(store_bytes * 1.5)))
    pack_store(packed.source, tmp_path / "store")


def test_what_is_already_written_counts_as_room(
    packed: Packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done_experts == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_store(packed.source, tmp_path / "store", progress=stop)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=70_000))
    pack_store(packed.source, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(packed.store)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 KB."""
    with disk.small_disk(tmp_path, "300k") as mounted:
        yield mounted


def test_a_disk_that_fills_up_on_the_way_ends_the_pack_which_goes_on_once_there_is_room(
    packed: Packed, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"

    def fill(progress: Progress) -> None:
        if progress.done_experts == 2 and not ballast.exists():
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 8192)

    with pytest.raises(ResourceExhausted, match=r"no space left on device, \d+ bytes are free") as raised:
        pack_store(packed.source, small_disk / "store", PackOptions(workers=1), fill)
    assert "goes on where it stopped" in raised.value.diagnostics()
    with pytest.raises(NotFound, match="unfinished pack"):
        read_manifest(small_disk / "store")
    with pytest.raises(ResourceExhausted, match="needs about"):
        pack_store(packed.source, small_disk / "store")
    ballast.unlink()
    seen: list[Progress] = []
    pack_store(packed.source, small_disk / "store", progress=seen.append)
    assert seen[-1].resumed_bytes >= 2 * 2880
    assert tree(small_disk / "store") == tree(packed.store)


def test_a_disk_without_room_for_the_journal_is_a_full_disk(packed: Packed, small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free)
    with pytest.raises(ResourceExhausted, match="no space left"):
        pack_store(packed.source, small_disk / "store")
    (small_disk / "ballast").unlink()
    pack_store(packed.source, small_disk / "store")
    assert tree(small_disk / "store") == tree(packed.store)


PACK_UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from tests.store.sources import make_source
from zipmoe.errors import ResourceExhausted
from zipmoe.store.pack.writer import pack_store

source = make_source(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    pack_store(source, Path(sys.argv[2]))
except ResourceExhausted as error:
    print(error.message)
"""


@pytest.mark.parametrize("limit_bytes", [0, 1000, 20_000, 40_000])
def test_a_limit_on_file_sizes_is_a_full_disk_too(packed: Packed, tmp_path: Path, limit_bytes: int) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    command = [sys.executable, "-c", PACK_UNDER_A_LIMIT, str(tmp_path / "source"), str(tmp_path / "store")]
    ended = subprocess.run(
        [*command, str(limit_bytes)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert "file too large" in ended.stdout
    assert not (tmp_path / "store" / "manifest.json").exists()
    pack_store(packed.source, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(packed.store)
