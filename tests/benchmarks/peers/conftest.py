"""A tiny checkpoint whose shards part some experts, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from zipmoe.model.checkpoint.catalogue import Catalogue, catalogue
from zipmoe.model.synth.writer import synthesise


@pytest.fixture(scope="session")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers") / "src"
    synthesise("qwen2_moe", folder)
    return folder


@pytest.fixture(scope="session")
def source(src: Path) -> Catalogue:
    return catalogue(src)
