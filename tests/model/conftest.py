"""Fixtures of the model tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, logging

from tests.model.tiny import MemoryProvider, load_stock, save_checkpoint, split_stock
from tests.one_thread import one_thread
from zipmoe.model.build.build import BuiltModel, build_model
from zipmoe.model.experts.device import HostPlacement
from zipmoe.model.linear.native_linear import Linears
from zipmoe.store.format.entries import LayerEntry

logging.disable_progress_bar()
logging.set_verbosity_error()


@dataclass(frozen=True)
class Twin:
    """A stock model and ours of the same checkpoint."""

    path: Path
    stock: PreTrainedModel
    layers: list[LayerEntry]
    dense: dict[str, torch.Tensor]
    provider: MemoryProvider
    built: BuiltModel
    linears: Linears


TwinOf = Callable[[str], Twin]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models gain nothing from more threads, which stall at barriers when another job has the core."""
    with one_thread():
        yield


@pytest.fixture(scope="session")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> TwinOf:
    """Builds the twins of a family, once a session."""
    twins: dict[str, Twin] = {}

    def get(family: str) -> Twin:
        if family not in twins:
            path = tmp_path_factory.mktemp(family)
            save_checkpoint(family, path)
            stock = load_stock(path)
            layers, dense, provider = split_stock(stock)
            linears = Linears()
            built = build_model(path, layers, dense, provider, HostPlacement(), linears)
            twins[family] = Twin(path, stock, layers, dense, provider, built, linears)
        twin = twins[family]
        twin.provider.arrange = list
        twin.provider.requests.clear()
        twin.provider.closed = 0
        return twin

    return get
