"""Tests that share fixtures are run by one worker, so that each fixture is made once."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_pytest_xdist_takes_the_groups(request: pytest.FixtureRequest) -> None:
    """Versions of pytest and pytest-xdist that do not fit drop all groups and say nothing."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith(f"@{Path(__file__)}")
