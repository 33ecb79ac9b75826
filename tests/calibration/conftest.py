from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.measurement_time import own_cache
from tests.services.tiny_store import TinyStore, make_store

__all__ = ["own_cache"]


@pytest.fixture(autouse=True)
def _own_cache(own_cache: None) -> None:
    """Every test here has a cache folder of its own."""


@pytest.fixture
def store(tmp_path: Path) -> TinyStore:
    return make_store(tmp_path, shapes=((64, 40), (40, 32)))
