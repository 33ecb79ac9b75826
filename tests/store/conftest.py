"""A packed store to read, and copies of it to damage."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.store.sources import DiskSource, make_source
from zipmoe.store.pack.writer import PackOptions, pack_store


@dataclass(frozen=True)
class Packed:
    source: DiskSource
    store: Path


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Never changed by a test."""
    folder = tmp_path_factory.mktemp("packed")
    source = make_source(folder / "source")
    pack_store(source, folder / "store", PackOptions(workers=2))
    return Packed(source, folder / "store")


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been fsynced, by path; nothing really is: no test here survives a power failure, and disks are slow."""
    paths: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: paths.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    return paths


@pytest.fixture
def copied(packed: Packed, tmp_path: Path) -> Packed:
    """A copy that the test may damage."""
    return Packed(packed.source, shutil.copytree(packed.store, tmp_path / "store"))
