"""Settings that have to stand before any test module is imported, and the rule for tests that need a GPU."""

from __future__ import annotations

import os

# Read by MKL when torch is imported: without it fp32 results depend on the addresses of weights.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
# No test talks to a hub, and a missing file must not look like a slow one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ZIPMOE_START_CHECK", "off")  # its reads of experts would be among those that tests count
# Two workers share the cores. Threads of torch that spin while they wait for one another would take them all.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


# A test that starts processes or builds programs waits for a machine that others use too.
SLOW_LIMIT_S = 600


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="also run tests marked `extra`; what `make test-all` does")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))
        if item.get_closest_marker("extra") and not config.getoption("--all"):
            item.add_marker(pytest.mark.skip(reason="left to `make test-all`"))
        item.add_marker(pytest.mark.xdist_group(_group_of(item)))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _group_of(item: pytest.Item) -> str:
    """The tests that one worker runs together: those of a model family wherever they stand, else those of a file.

    A family's checkpoint, store and stock model are made once a worker; a file's own fixtures likewise.
    """
    parameters = getattr(item, "callspec", None)
    family = parameters.params.get("family") if parameters is not None else None
    return f"family {family}" if isinstance(family, str) else str(item.path)
