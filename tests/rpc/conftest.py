"""Fixtures for the RPC library's tests."""

import structlog
import pytest


@pytest.fixture
def logged():
    """The structlog events of the test, as dictionaries."""
    with structlog.testing.capture_logs() as events:
        yield events
