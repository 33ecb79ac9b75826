from __future__ import annotations

import pytest

from tests.services.tiny_store import TinyStore, make_store


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """A store that tests must not damage."""
    return make_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """A store of the test's own, to be damaged at will."""
    return make_store(tmp_path_factory.mktemp("own"))
