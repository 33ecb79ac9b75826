"""Fixtures of the integration tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.stacks.pair import FLAGS, SLOTS
from tests.integration.stacks.stack import PackedModel, Stack, StockModel, pack_family, stack
from tests.one_thread import one_thread
from tests.services.processes import Services, running_services
from tests.services.tiny_store import TinyStore, make_store
from zipmoe.cli.flags import Settings

#: Fewer slots than experts, and of each pool another number: experts and parts of them come and go all the time.
TIGHT: Settings = {"cache_slots": "7:6:5", "workers": 2}
#: Room for the chunks of every expert, and nothing to promote them to.
ROOMY: Settings = {"cache_slots": "64:64:0", "workers": 1}


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.slow)  # every test here starts processes


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Stock has to compute with as many threads as the router under test."""
    with one_thread():
        yield


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An own folder with a path short enough for UNIX sockets."""
    path = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PackedModel]:
    """A tiny packed model of a family, made once; not to be damaged."""
    made: dict[str, PackedModel] = {}

    def get(family: str) -> PackedModel:
        if family not in made:
            made[family] = pack_family(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="session")
def stock_of() -> Callable[[PackedModel], StockModel]:
    """Stock transformers on a checkpoint, loaded once."""
    loaded: dict[Path, StockModel] = {}

    def get(model: PackedModel) -> StockModel:
        if model.checkpoint not in loaded:
            loaded[model.checkpoint] = StockModel(model.checkpoint)
        return loaded[model.checkpoint]

    return get


@pytest.fixture(scope="module")
def qwen(packed: Callable[[str], PackedModel]) -> Iterator[Stack]:
    """The three services on a tiny Qwen, with fewer slots than experts."""
    folder = Path(tempfile.mkdtemp(prefix="zipmoe-"))
    with stack(packed("qwen2_moe"), folder, TIGHT) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def large_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """Experts of 768 KiB: large enough that several are under way when the first one is done."""
    return make_store(tmp_path_factory.mktemp("large"), layers=1, experts=SLOTS, shapes=((512, 512), (512, 256)))


@pytest.fixture(scope="module")
def pair(large_store: TinyStore) -> Iterator[Services]:
    """A store and a decoder that tests share; they leave no session open."""
    with running_services() as services:
        services.store(large_store.path, *FLAGS)
        services.decoder(large_store.path, *FLAGS)
        services.wait_for_decoder()
        yield services
