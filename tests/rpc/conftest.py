"""Fixtures for the RPC library's tests."""

import pytest
import structlog


@pytest.fixture
def logged():
    """The structlog events of the test, as dictionaries."""
    with structlog.testing.capture_logs() as events:
        yield events
