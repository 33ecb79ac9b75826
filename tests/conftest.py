"""Settings that have to stand before any test module is imported, and the rule for tests that need a GPU."""

from __future__ import annotations

import os

# Read by MKL when torch is imported: without it fp32 results depend on the addresses of weights.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
# No test talks to a hub, and a missing file must not look like a slow one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A shell makes its background jobs ignore SIGINT, and their children inherit that; some tests interrupt theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared with other work, so an example's duration says nothing; what runs is the same every time.
settings.register_profile("zipmoe", deadline=None, derandomize=True, database=None)
settings.load_profile("zipmoe")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured and learnt by tests, and by processes that they start, does not go to the user's cache.

    Programs that scripts fetch do: else every run would fetch them, and build anew what they built.
    """
    from zipmoe.calibration.calibration_file import cache_folder

    users, own = cache_folder(), tmp_path_factory.mktemp("cache")
    for fetched in ("debian", "aarch64-tools"):
        (users / fetched).mkdir(parents=True, exist_ok=True)
        (own / fetched).symlink_to(users / fetched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIPMOE_CACHE_DIR", str(own))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
