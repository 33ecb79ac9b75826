"""Fixtures of the catalogue's tests."""

from __future__ import annotations

import pytest

from tests.model.hub import HubCheckpoints


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> HubCheckpoints:
    return HubCheckpoints(tmp_path_factory.mktemp("hub"))
